"""The suite `startup`: what a user waits for before anything is computed. Nobody to compare with: seconds of CPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from covidseg.benchmark.contest import OURS, Contender, Contest
from covidseg.config.paths import ROOT
from covidseg.system.errors import EnvironmentFault

_RUN = ("recipe=smoke", "data=phantom", "trainer=cpu", "logger=csv", "model=unet3d")


def contests(cfg: DictConfig) -> list[Contest]:
    """One for each kind of start."""
    place = Path(cfg.output).absolute() / "startup"
    place.mkdir(parents=True, exist_ok=True)
    first = ("training.max_steps=1", "training.validate_every=1", "fold=all", "row=first")

    def fresh() -> None:
        shutil.rmtree(place / "runs" / "train" / "first", ignore_errors=True)
        _train(place, *_RUN, *first)

    def done() -> Callable[[], None]:
        _train(place, *_RUN, "row=done")
        return lambda: _train(place, *_RUN, "row=done")

    wants: list[tuple[str, Callable[[], Callable[[], None]]]] = [
        ("train.py --help", lambda: lambda: _train(place, "--help")),
        ("train.py of a run that is done", done),
        ("train.py of a run of one step (smoke, phantoms prepared)", lambda: fresh),
    ]
    return [
        Contest(f"startup: {name}", [Contender("covidseg", OURS, make)], 1, cfg.startup.rounds) for name, make in wants
    ]


def _train(place: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "covidseg.cli.train", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault("train.py", f"ended with {done.returncode}: {done.stderr[-200:]}", "try it by hand")
