"""Where the time of a sweep went: what the devices did while it ran."""

import calendar
import time
from collections.abc import Sequence
from dataclasses import dataclass

from covidseg.sweep.rows import Row, State
from covidseg.sweep.view import duration


@dataclass
class Account:
    """Device-seconds of the runs that this sweep started and finished, and of what lay between them."""

    wall: float  # seconds of the sweep itself, planning and waiting included
    devices: int
    starting: float = 0.0  # from the start of a process to its first step: imports, reading or preparing the data
    training: float = 0.0  # steps and validation
    evaluating: float = 0.0  # all after the last step: whole test volumes, tracking, writing

    @property
    def waiting(self) -> float:
        """Devices without a run."""
        return max(0.0, self.wall * self.devices - self.starting - self.training - self.evaluating)

    @property
    def overhead(self) -> float:
        """Device-seconds of the whole sweep over those of training alone; 1 is the ideal."""
        return self.wall * self.devices / self.training

    def __str__(self) -> str:
        total = self.wall * self.devices
        parts = ("training", "starting", "evaluating", "waiting")
        shares = ", ".join(f"{getattr(self, part) / total:.0%} {part}" for part in parts)
        where = f"{self.devices} device{'s' if self.devices > 1 else ''}"
        return f"{duration(self.wall)} on {where}: {shares}; {self.overhead:.2f} times the training alone"


def account(rows: Sequence[Row], devices: int, wall: float) -> Account | None:
    """The account of what this sweep did itself; None when no run of it tells."""
    total = Account(wall, devices)
    for row in rows:
        if row.state is not State.DONE or not row.seconds:
            continue
        try:
            manifest, metrics = row.folder.manifest or {}, row.folder.metrics or {}
            attempt = manifest["attempts"][-1]
            first = calendar.timegm(time.strptime(attempt["started"], "%Y-%m-%dT%H:%M:%SZ"))
            training = metrics["train"]["seconds"]
        except (TypeError, ValueError, LookupError):
            continue
        starting = min(max(first - row.started, 0.0), row.seconds)
        training = min(training, row.seconds - starting)
        total.starting += starting * row.devices
        total.training += training * row.devices
        total.evaluating += (row.seconds - starting - training) * row.devices
    return total if total.training else None
