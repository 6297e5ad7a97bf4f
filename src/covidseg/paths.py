"""Where the suite's own files lie: beside the package in a clone, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CLONE = _PACKAGE.parent.parent

ROOT = _CLONE if (_CLONE / "conf").is_dir() else _PACKAGE / "share"
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
