"""Runs as child processes on the devices of this machine, each on the next that are free."""

import os
import time
from collections.abc import Sequence
from typing import Any

from covidseg.sweep.child import Child, environment, program
from covidseg.sweep.rows import Row
from covidseg.sweep.schedule import Devices
from covidseg.system.errors import BadInput


class LocalPool:
    """Starts rows as children and says which have ended. `ids` are GPU indices or UUIDs, or the names of CPU slots.

    `group`: what the runs of this sweep are tracked under.
    """

    def __init__(self, ids: Sequence[str], on_gpu: bool, group: str):
        self.devices = Devices(ids)
        self.on_gpu, self.group = on_gpu, group
        self._children: dict[int, tuple[Row, Child]] = {}

    def __str__(self) -> str:
        count = len(self.devices.ids)
        if self.on_gpu:
            return f"{count} GPU{'s' if count > 1 else ''} ({', '.join(self.devices.ids)})"
        return f"the CPU, {count} run{'s' if count > 1 else ''} at a time"

    @property
    def slots(self) -> int:
        """How many one-device runs it runs at once."""
        return len(self.devices.ids)

    def fit(self, row: Row) -> None:
        """Give the row's wish a number of the pool's devices. Raises BadInput when it can never start here."""
        if row.nodes > 1:
            raise BadInput(row.name, f"trainer.num_nodes={row.nodes} on one machine", "launcher=slurm takes several")
        size = len(self.devices.ids)
        if row.devices == -1:
            row.devices = size if self.on_gpu else 1
        if row.devices > size:
            remedy = "fewer devices, or more in GPUS=" if self.on_gpu else f"hydra.launcher.slots={row.devices}"
            raise BadInput(row.name, f"trainer.devices={row.devices}, the pool has {size}", remedy)

    def next(self, waiting: Sequence[Row]) -> Row | None:
        """The row to start now, or None while there is no device for any."""
        return self.devices.next(waiting)

    def start(self, row: Row) -> None:
        """Start the row's program on its devices."""
        row.placed_on = self.devices.take(row)
        extra = {"COVIDSEG_SWEEP": self.group}
        if self.on_gpu:
            extra["CUDA_VISIBLE_DEVICES"] = ",".join(row.placed_on)
        elif "OMP_NUM_THREADS" not in os.environ:
            extra["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(self.devices.ids)))
        child = Child([*program(), *row.overrides], row.folder.path / "output.log", environment(extra))
        self._children[id(row)] = (row, child)

    def ended(self) -> list[tuple[Row, int | None, str]]:
        """The rows whose programs are gone since the last call, each with its exit status and last line."""
        over: list[tuple[Row, int | None, str]] = []
        for row, child in list(self._children.values()):
            status = child.exit_status()
            if status is None:
                continue
            del self._children[id(row)]
            self.devices.give(row, row.placed_on)
            row.placed_on, row.seconds = [], time.monotonic() - child.started
            over.append((row, status, child.last_line()))
        return over

    @property
    def busy(self) -> bool:
        return bool(self._children)

    def terminate(self) -> None:
        """Ask every run to save and end."""
        for _, child in self._children.values():
            child.terminate()

    def kill(self) -> None:
        """End every run now."""
        for _, child in self._children.values():
            child.kill()


def find_devices(devices: object, slots: object, on_cpu: bool) -> tuple[list[str], bool]:
    """The pool's device ids, and whether they are GPUs.

    `devices`: what GPUS= holds ("0,1,5", or "auto" for all that this process may see). `slots`: runs at a time on a
    CPU, "auto" for one per core and 8 GiB of memory. `on_cpu`: the runs' trainer wants no GPU.
    """
    ids = _listed(devices)
    if ids and not on_cpu:
        if len(set(ids)) < len(ids):
            raise BadInput("GPUS", f"{','.join(ids)} names a device twice", "name each once")
        return ids, True
    found = [] if on_cpu else _visible_gpus()
    if found:
        return found, True
    count = _cpu_slots() if slots == "auto" else slots
    if not isinstance(count, int) or count < 1:
        raise BadInput("hydra.launcher.slots", f"{count} runs at a time", "auto, or 1 or more")
    return [f"cpu{k}" for k in range(count)], False


def _cpu_slots() -> int:
    """One run per core: threads of one run wait for each other, runs do not."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, round(memory / 2**33)))


def _listed(asked: Any) -> list[str]:
    if asked in ("auto", "", None):
        return []
    if isinstance(asked, int):
        return [str(asked)]
    parts = asked.split(",") if isinstance(asked, str) else asked
    return [str(part).strip() for part in parts if str(part).strip()]


def _visible_gpus() -> list[str]:
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return _listed(visible)
    from torch.cuda import device_count  # seconds to import, and only wanted where nobody said what is there

    return [str(k) for k in range(device_count())]
