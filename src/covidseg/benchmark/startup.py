"""The suite `startup`: what a user waits for before anything is computed. Nobody to compare with: seconds of CPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from covidseg.benchmark.call import train
from covidseg.benchmark.contest import OURS, Contender, Contest

_RUN = ("recipe=smoke", "data=phantom", "trainer=cpu", "logger=csv", "model=unet3d")


def contests(cfg: DictConfig) -> list[Contest]:
    """One for each kind of start."""
    place = Path(cfg.output).absolute() / "startup"
    first = ("training.max_steps=1", "training.validate_every=1", "fold=all", "row=first")

    def fresh() -> None:
        shutil.rmtree(place / "runs" / "train" / "first", ignore_errors=True)
        train(place, *_RUN, *first)

    def done() -> Callable[[], None]:
        train(place, *_RUN, "row=done")
        return lambda: train(place, *_RUN, "row=done")

    wants: list[tuple[str, Callable[[], Callable[[], None]]]] = [
        ("train.py --help", lambda: lambda: train(place, "--help")),
        ("train.py of a run that is done", done),
        ("train.py of a run of one step (smoke, phantoms prepared)", lambda: fresh),
    ]
    return [
        Contest(f"startup: {name}", [Contender("covidseg", OURS, make)], 1, cfg.startup.rounds) for name, make in wants
    ]
