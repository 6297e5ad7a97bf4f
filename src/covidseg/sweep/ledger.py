"""The sweep's own file, `<runs>/.sweeps/<name>-<hash>.json`: which rows it has, where each runs, why one stopped.

It is what `status` shows, and never what decides whether a run is done: the run's folder does. The hash is that of the
rows, so that the same command finds the same file, and two sweeps that differ in one row have two.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from covidseg.sweep.rows import Row, State
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_json
from covidseg.system.locks import is_locked, locked
from covidseg.system.readback import mismatch

_LEDGER = {
    "sweep": re.compile(r"[A-Za-z0-9._-]+"),
    "pid": int,
    "host": str,
    "rows": [
        {
            "name": str,
            "folder": re.compile(r"\.\.(/[A-Za-z0-9][A-Za-z0-9._-]*){4}"),
            "hash": str,
            "max_steps": int,
            "patches_per_step": int,
            "state": {state.value for state in State},
            "reason": str,
            "placed_on": [str],
        }
    ],
}


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
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path.with_suffix(".lock")))
            except BlockingIOError:
                owner = (read_ledger(self.path) or {}).get("pid", "?")
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


def read_ledger(path: Path) -> dict[str, Any] | None:
    """The content of a ledger file; None where it is something else, or names folders outside its `runs`."""
    try:
        ledger = read_json(path)
    except (OSError, ValueError):
        return None
    return None if mismatch(ledger, _LEDGER) else ledger


def is_held(path: Path) -> bool:
    """Whether the sweep of the ledger file `path` is running now."""
    return is_locked(path.with_suffix(".lock"))
