"""`train.py` as a user calls it, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

from covidseg.config.paths import ROOT
from covidseg.system.errors import EnvironmentFault


def train(place: Path, *arguments: str) -> None:
    """Run it in `place`, which is made, in a process of its own. Raises `EnvironmentFault` with its last words."""
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "covidseg.cli.train", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault("train.py", f"ended with {done.returncode}: {done.stderr[-200:]}", "try it by hand")
