"""manifest.json: what made a run's numbers, with one entry for each time it was started."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from covidseg.config.paths import ROOT
from covidseg.runs.folder import RunFolder
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_json
from covidseg.system.scrub import without_secret_argument

FORMAT = 1  # of manifest.json; one without a number is of this format
_PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "monai", "numpy", "scipy")


def record(folder: Path, run: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Add an attempt to the folder's manifest.json; returns the whole.

    `run`: what has to stay the same over all attempts; raises `BadInput` where the prepared data are not those that the
    run's checkpoints come from. `attempt`: what may differ, except for its effective batch and precision.
    """
    path = folder / "manifest.json"
    before = read_json(path) if path.exists() else {"attempts": []}
    if (written := before.get("format", FORMAT)) != FORMAT:
        wrong = f"has format {written!r}, this code reads {FORMAT}"
        raise BadInput(f"{folder.name}/manifest.json", wrong, "use the code that wrote it, or another name= or row=")
    if before.get("data", run["data"]) != run["data"]:
        if RunFolder(folder).holds_work:
            raise BadInput(
                folder.name,
                f"was started with data {before['data']['hash']}, now they are {run['data']['hash']}",
                "restore the data, or choose another name= or row=",
            )
        before = {"attempts": []}
    if clash := RunFolder(folder).other_resources(attempt):
        raise clash
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = {
        "format": FORMAT,
        **run,
        "attempts": [*before["attempts"], {"started": started, **surroundings(), **attempt}],
    }
    write_json(path, manifest)
    return manifest


def surroundings() -> dict[str, Any]:
    """Command, code and libraries of this process; no path, host or user name."""
    return {
        "command": command(sys.argv),
        "git": git_state(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def command(arguments: Sequence[str]) -> list[str]:
    """The command line without secrets, every absolute path cut down to its last part."""
    shown = [Path(arguments[0]).name]
    for argument in map(without_secret_argument, arguments[1:]):
        key, sign, value = argument.rpartition("=")
        is_place = value.startswith(("/", "~"))
        shown.append(f"{key}{sign}{Path(value).name}" if is_place else argument)
    return shown


def git_state() -> dict[str, Any] | None:
    """Commit of the code and whether it was changed since; None outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "src", "conf"))}
    except (OSError, subprocess.SubprocessError):
        return None


def devices(root_device: torch.device, processes: int) -> dict[str, Any]:
    """What computed: processes and the name of the device of the first one."""
    if root_device.type == "cuda":
        named = {"device": torch.cuda.get_device_name(root_device), "cuda": torch.version.cuda}
        rounding = (
            torch.backends.cudnn.allow_tf32
        )  # whether convolutions "in float32" keep ten bits on Ampere and later
        return {"processes": processes, **named, "tf32": rounding, "cudnn": torch.backends.cudnn.version()}
    return {"processes": processes, "device": root_device.type, "threads": torch.get_num_threads()}
