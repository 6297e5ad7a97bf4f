"""Where the suite's own files lie: beside the package in a clone, inside it in an installed wheel."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CLONE = _PACKAGE.parent.parent

ROOT = _CLONE if (_CLONE / "conf").is_dir() else _PACKAGE / "share"
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"


def row_folders(named: object = None) -> tuple[Path, ...]:
    """Where the rows of the tables are defined: in the folder that is `named`, or else the suite's and one's own."""
    if named is not None:
        return (Path(str(named)).expanduser(),)
    return (EXPERIMENTS, *(folder / EXPERIMENTS.name for folder in own_configuration()))


def own_configuration() -> tuple[Path, ...]:
    """Where this machine's own YAML files lie: conf/local, and the folder that COVIDSEG_CONF names, if it does.

    They alone may add classes to what a configuration can name. A run, a data set or the working folder may not.
    """
    named = os.environ.get("COVIDSEG_CONF")
    return (CONF / "local", *([Path(named).expanduser().absolute()] if named else []))
