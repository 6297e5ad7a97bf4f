"""What a contender is asked for, and what it leaves: `job.json` in its folder; `facts.json`, `curve.csv`, `masks/`."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

from covidseg.nets.cost import multiply_adds
from covidseg.system.files import read_json, write_csv, write_json

FACTS, CURVE, MASKS = "facts.json", "curve.csv", "masks"
WIDTHS = (4, 6, 8, 12, 16, 24, 32)  # of a peer's first level; nnU-Net's own is 32
POINTS = 200  # of a curve


@dataclass(frozen=True)
class Job:
    """One contender on one fold. Cases lie as `<scans>/imagesTr/<case>_0000.nii.gz` and `labelsTr/<case>.nii.gz`."""

    contender: str
    folder: str  # of this job
    scans: str  # nnU-Net's raw folder of the data set, Dataset001_versus
    train: tuple[str, ...]  # case ids
    test: tuple[str, ...]
    fold: int | None
    minutes: float
    seed: int
    spacing_zyx: tuple[float, ...]
    patch_size_zyx: tuple[int, ...]
    batch_size: int
    window: tuple[float, ...]  # HU
    multiply_adds: int  # of our network on one patch
    overrides: tuple[str, ...]  # of train.py: data, recipe

    def save(self) -> Path:
        path = Path(self.folder) / "job.json"
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: Path | str) -> Self:
        content = {key: tuple(v) if isinstance(v, list) else v for key, v in read_json(Path(path)).items()}
        return cls(**cast(Any, content))

    @property
    def masks(self) -> Path:
        return Path(self.folder) / MASKS

    def image(self, case: str) -> Path:
        return Path(self.scans) / "imagesTr" / f"{case}_0000.nii.gz"

    def label(self, case: str) -> Path:
        return Path(self.scans) / "labelsTr" / f"{case}.nii.gz"

    def width_of(self, network: Callable[[int], Any]) -> int:
        """The width at which `network(width)`, on the meta device, costs nearest to our multiply-adds on a patch."""
        costs = {width: multiply_adds(network(width), self.patch_size_zyx) for width in WIDTHS}
        return min(costs, key=lambda width: abs(costs[width] / self.multiply_adds - 1))


class Clock:
    """The minutes of a training: `for share in clock:` gives the share that has passed, until nothing is left."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.losses: list[tuple[float, float]] = []  # (seconds, loss)
        self._began = time.perf_counter()

    def __iter__(self) -> Iterator[float]:
        self._began = time.perf_counter()
        while (passed := self.passed) < self.seconds:
            yield passed / self.seconds

    @property
    def passed(self) -> float:
        return time.perf_counter() - self._began

    def log(self, loss: float) -> None:
        """Of the step that was just made."""
        self.losses.append((self.passed, loss))


def leave(
    job: Job,
    losses: Sequence[tuple[float, float]],
    *,
    batch_size: int,
    seconds: float,
    preparing: float,
    predicting: float,
    what: str,
) -> None:
    """Write the curve, thinned by means, and the facts last: they say that the job is done.

    `losses`: (seconds, loss) of each step; `seconds` of training, of `preparing` before it, of `predicting` all cases;
    `what`: was trained, in words.
    """
    size = max(1, -(-len(losses) // POINTS))
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    rows = [
        {"seconds": round(group[-1][0], 2), "loss": round(sum(loss for _, loss in group) / len(group), 5)}
        for group in groups
    ]
    write_csv(Path(job.folder) / CURVE, rows, ("seconds", "loss"))
    facts = {
        "steps": len(losses),
        "patches": len(losses) * batch_size,
        "seconds": seconds,
        "preparing": preparing,
        "predicting": predicting,
        "what": what,
        "falling": falling(losses),
    }
    write_json(Path(job.folder) / FACTS, facts)


def falling(losses: Sequence[tuple[float, float]]) -> float | None:
    """Share of all that the loss fell by that it fell in the last fifth of the steps; None below ten steps.

    What is still falling has not converged: it says nothing about who would be ahead in the end.
    """
    if len(losses) < 10:
        return None
    fifth = len(losses) // 5
    first, before, last = (
        sum(loss for _, loss in part) / fifth for part in (losses[:fifth], losses[-2 * fifth : -fifth], losses[-fifth:])
    )
    return round((before - last) / (first - last), 4) if first > last else 0.0
