"""Runs as child processes on the devices of this machine, each on the next that are free."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covidseg.sweep.child import Child, environment, program
from covidseg.sweep.rows import Row
from covidseg.sweep.schedule import Devices
from covidseg.system.devices import GIVEN_GPUS
from covidseg.system.errors import BadInput

_NAMED = ("GPU-", "MIG-")  # how a device's name begins where it is no number
_DRIVER_LIST = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


class LocalPool:
    """Starts rows as children and says which have ended. `ids` are GPU indices or UUIDs, or the names of CPU slots.

    `group`: what the runs of this sweep are tracked under. `per_device`: runs that share a GPU, where each leaves room.
    """

    detached = False  # its runs end with it

    def __init__(self, ids: Sequence[str], on_gpu: bool, group: str, per_device: int = 1):
        self.devices = Devices([*ids] * (per_device if on_gpu else 1))
        self.on_gpu, self.group, self._per_device = on_gpu, group, per_device if on_gpu else 1
        self._children: dict[int, tuple[Row, Child]] = {}

    def __str__(self) -> str:
        count = len(self.devices.ids)
        if self.on_gpu:
            ids = list(dict.fromkeys(self.devices.ids))
            shared = f", {self._per_device} runs on each" if self._per_device > 1 else ""
            return f"{len(ids)} GPU{'s' if len(ids) > 1 else ''} ({', '.join(ids)}){shared}"
        return f"the CPU, {count} run{'s' if count > 1 else ''} at a time"

    @property
    def slots(self) -> int:
        """How many one-device runs it runs at once."""
        return len(self.devices.ids)

    def fit(self, row: Row) -> None:
        """Give the row's wish a number of the pool's devices. Raises BadInput when it can never start here."""
        if row.nodes > 1:
            raise BadInput(row.name, f"trainer.num_nodes={row.nodes} on one machine", "launcher=slurm takes several")
        size = len(set(self.devices.ids))
        if row.devices == -1:
            row.devices = size if self.on_gpu else 1
        if row.devices > size:
            remedy = "fewer devices, or more in GPUS=" if self.on_gpu else f"hydra.launcher.slots={row.devices}"
            raise BadInput(row.name, f"trainer.devices={row.devices}, the pool has {size}", remedy)
        if self._per_device > 1 and row.devices > 1:
            wrong = f"trainer.devices={row.devices} takes whole GPUs, and {self._per_device} runs share each"
            raise BadInput(row.name, wrong, "hydra.launcher.per_device=1, or trainer.devices=1")

    def next(self, waiting: Sequence[Row]) -> Row | None:
        """The row to start now, or None while there is no device for any."""
        return self.devices.next(waiting)

    def start(self, row: Row) -> None:
        """Start the row's program on its devices."""
        row.placed_on = self.devices.take(row)
        child = Child([*program(), *row.overrides], row.folder.path / "output.log", self._environment(row.placed_on))
        self._children[id(row)] = (row, child)

    def flush(self) -> list[Row]:
        """Nothing is held back here."""
        return []

    def environment_of_one(self) -> dict[str, str]:
        """What a run on one device would find."""
        return self._environment(self.devices.ids[:1])

    def _environment(self, ids: Sequence[str]) -> dict[str, str]:
        extra = {"COVIDSEG_SWEEP": self.group}
        if self.on_gpu:
            extra["CUDA_VISIBLE_DEVICES"] = extra[GIVEN_GPUS] = ",".join(ids)
        if "OMP_NUM_THREADS" not in os.environ:  # each process would take all cores, for loading and augmentation too
            extra["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(self.devices.ids)))
        return environment(extra)

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


def require_per_device(value: object) -> int:
    """`hydra.launcher.per_device`; `BadInput` for what is no number of runs."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput("hydra.launcher.per_device", f"{value} runs on a device", "1 or more")
    return value


def find_devices(devices: object, slots: object, on_cpu: bool) -> tuple[list[str], bool]:
    """The pool's device ids, and whether they are GPUs.

    `devices`: what GPUS= holds: "0,1,5", "0-5", or "auto" or "all" for all that this process may see. Numbers count
    within CUDA_VISIBLE_DEVICES, where that is set, as they do in any program. `slots`: runs at a time on a
    CPU, "auto" for one per core and 8 GiB of memory. `on_cpu`: the runs' trainer wants no GPU.
    """
    ids = _listed(devices)
    if ids and not on_cpu:
        if len(set(ids)) < len(ids):
            raise BadInput("GPUS", f"{','.join(ids)} names a device twice", "name each once")
        return _within(ids, os.environ.get("CUDA_VISIBLE_DEVICES")), True
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
    """The devices of GPUS= one by one: numbers, ranges, or names as `nvidia-smi -L` prints them (GPU-..., MIG-...)."""
    if asked in ("auto", "all", "", None):
        return []
    if isinstance(asked, str | int):
        asked = str(asked).split(",")
    ids: list[str] = []
    for part in filter(None, (str(one).strip() for one in asked)):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span and int(span[1]) <= int(span[2]):
            ids += map(str, range(int(span[1]), int(span[2]) + 1))
        elif part.isdecimal():
            ids.append(str(int(part)))
        elif part.startswith(_NAMED):
            ids.append(part)
        else:
            raise BadInput(
                f"GPUS={asked}", f"{part} is no device", "numbers and ranges, as 0,2-5; all; or names as GPU-..."
            )
    return ids


def _within(ids: list[str], visible: str | None) -> list[str]:
    """The devices that the numbers mean where CUDA_VISIBLE_DEVICES shows a part of the machine."""
    if visible is None:
        count = _gpus_of_the_machine()
        if count and (beyond := [one for one in ids if one.isdecimal() and int(one) >= count]):
            wrong = f"device {beyond[0]} is not there: this machine has {count}"
            raise BadInput(f"GPUS={','.join(ids)}", wrong, f"0 to {count - 1}")
        return ids
    there = _seen(visible)
    beyond = [one for one in ids if (int(one) >= len(there) if one.isdecimal() else one not in there)]
    if beyond:
        seen = f"CUDA_VISIBLE_DEVICES={visible} shows {len(there)}"
        remedy = f"0 to {len(there) - 1}" if there else "unset it, or trainer=cpu"
        raise BadInput(f"GPUS={','.join(ids)}", f"device {beyond[0]} is not there: {seen}", remedy)
    return [there[int(one)] if one.isdecimal() else one for one in ids]


def _gpus_of_the_machine() -> int:
    """How many the driver lists, without the seconds that torch takes; 0 where that is not known."""
    return len(list(_DRIVER_LIST.iterdir())) if _DRIVER_LIST.is_dir() else 0


def _seen(visible: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES shows: all up to the first that cannot be, as -1 and NoDevFiles, which mean none."""
    there: list[str] = []
    for part in (part.strip() for part in visible.split(",")):
        if not (part.isdecimal() or part.startswith(_NAMED)):
            break
        there.append(part)
    return there


def _visible_gpus() -> list[str]:
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return _seen(visible)
    from torch.cuda import device_count  # seconds to import, and only wanted where nobody said what is there

    return [str(k) for k in range(device_count())]
