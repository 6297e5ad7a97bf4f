"""What was planned for a data set (`plan=true`), and how `recipe=planned` reads it.

It lies in `<paths.data>/plans/<name>.yaml`. A configuration refers to it as
`${planned:${paths.data},${data.name},spacing_zyx}`. The values are part of a run's configuration as if they had been
written there, so a plan that changes makes other runs.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from covidseg.system.errors import BadInput
from covidseg.system.readback import NUMBER, mismatch

_MAX_BYTES = 1 << 16
SHAPE = {
    "format": {1},
    "model": str,
    "spacing_zyx": [NUMBER, NUMBER, NUMBER],
    "patch_size_zyx": [int, int, int],
    "width": int,
    "batch_size": int,
    "why": [str],
}


def plan_file(home: Path | str, name: str) -> Path:
    """Where the plan for the data set `name` lies, whose prepared cases are in `home`."""
    return Path(home) / "plans" / f"{name}.yaml"


def read_plan(home: Path | str, name: str) -> dict[str, Any]:
    """The plan of a data set. Raises `BadInput` where there is none, or it is not what a plan is."""
    path, again = plan_file(home, name), f"python src/prepare.py data={name} ... plan=true"
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream.read(_MAX_BYTES), yaml.CSafeLoader)
    except FileNotFoundError:
        raise BadInput("recipe=planned", f"there is no plan for {name} yet", f"{again} makes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(path.name, f"cannot be read ({type(error).__name__})", again) from error
    if wrong := mismatch(content, SHAPE):
        raise BadInput(path.name, f"is not a plan ({wrong})", again)
    return content


def _planned(home: str, name: str, key: str) -> Any:
    value = read_plan(home, name)[key]
    return OmegaConf.create(value) if isinstance(value, list) else value


OmegaConf.register_new_resolver("planned", _planned, replace=True)
