"""The sweep's own file, `<runs>/.sweeps/<name>-<hash>.json`: which rows it has, where each runs, why one stopped.

It is what `status` shows, and never what decides whether a run is done: the run's folder does. The hash is that of the
rows, so that the same command finds the same file, and two sweeps that differ in one row have two.
"""

import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from covidseg.errors import BadInput
from covidseg.files import environment_faults, read_json, write_json
from covidseg.sweep.rows import Row


class Ledger:
    """Writes the file of the sweep `name` whose rows are `rows` into `folder`."""

    def __init__(self, folder: Path, name: str, rows: Sequence[Row]):
        identity = "\n".join(sorted(f"{row.folder.path} {row.hash}" for row in rows))
        self.path = Path(folder) / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
        self.name, self.rows = name, rows
        self.started = time.time()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep this very sweep from being started twice at once. Raises BadInput when it is running."""
        with environment_faults(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.with_suffix(".lock").touch()
        with open(self.path.with_suffix(".lock"), "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = read_json(self.path).get("pid", "?") if self.path.exists() else "?"
                raise BadInput(
                    self.name, f"this very sweep is running already (process {owner})", "python src/status.py shows it"
                ) from None
            yield

    def save(self) -> None:
        """Write the present state of all rows."""
        write_json(
            self.path,
            {
                "sweep": self.name,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self.started,
                "updated": time.time(),
                "rows": [
                    {
                        "name": row.name,
                        "folder": os.path.relpath(row.folder.path, self.path.parent),
                        "hash": row.hash,
                        "devices": row.devices,
                        "max_steps": row.max_steps,
                        "patches_per_step": row.patches_per_step,
                        "state": row.state.value,
                        "reason": row.reason,
                        "placed_on": row.placed_on,
                        "started": row.started,
                        "seconds": round(row.seconds, 2),
                    }
                    for row in self.rows
                ],
            },
        )


def is_held(path: Path) -> bool:
    """Whether the sweep of the ledger file `path` is running now."""
    try:
        with open(path.with_suffix(".lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
