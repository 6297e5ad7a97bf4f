"""The `data` section of a configuration, checked before anything is read: a wrong value is one line that names it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from covidseg.scans.gate.names import require_case_id
from covidseg.system.errors import BadInput, CovidSegError


def validated(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with sites as text; `BadInput` names the first value that cannot be meant."""
    for section in ("source", "splits"):
        if not isinstance(options[section], Mapping):
            wrong = "is no group of options"
            raise BadInput(
                f"data.{section}={_text(options[section])}",
                wrong,
                f"leave it as conf/data gives it, and set what is in it: data.{section}.name=value",
            )
    options = {**options, "splits": dict(options["splits"])}
    known = [key.removeprefix("splits.") for key in _RULES if key.startswith("splits.")]
    if unknown := sorted(options["splits"].keys() - set(known)):
        raise BadInput(f"data.splits.{unknown[0]}", "there is no such option", f"choose one of {', '.join(known)}")
    for key, (holds, wanted) in _RULES.items():
        section, _, name = key.rpartition(".")
        values = options[section] if section else options
        if name in values and not holds(values[name]):
            raise BadInput(f"data.{key}={_text(values[name])}", "cannot be used", f"give {wanted}")
    options["splits"]["external_sites"] = [str(site) for site in options["splits"].get("external_sites", ())]
    return options


def _text(value: Any) -> str:
    """As a command line would give it."""
    return str(value).replace(" ", "").replace("'", "")[:80]


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(_number, value))


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _site(value: Any) -> bool:  # a site called 3 comes from a command line as a number
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def _file_name(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(require_case_id(value))
    except CovidSegError:
        return False


_SWITCH = (_switch, "true or false")
_SHARE = (_share, "a share of the patients from 0 (none) to less than 1, such as 0.15")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_file_name, "letters, digits, `.`, `_` or `-`: folders are named after it"),
    "spacing_zyx": (
        lambda value: _numbers(value, 3) and min(value) > 0,
        "three lengths in mm above 0, z, y, x: [2.5,1.5,1.5]",
    ),
    "window": (
        lambda value: _numbers(value, 2) and value[0] < value[1],
        "two HU values, the lower one first: [-1250,250]",
    ),
    "foreground_voxels": (_whole(1), "a whole number from 1"),
    "may_be_empty": _SWITCH,
    "allow_refused": _SWITCH,
    "verify": _SWITCH,
    "workers": (lambda value: value is None or _whole(0)(value), "a number of processes, 0 for none or null for all"),
    "splits.seed": (_whole(0), "a whole number from 0"),
    "splits.external_sites": (
        lambda value: isinstance(value, list | tuple) and all(map(_site, value)),
        "a list of sites: [A] or [A,B], [] for none",
    ),
    "splits.test_fraction": _SHARE,
    "splits.validation_fraction": _SHARE,
    "splits.folds": (
        lambda value: _whole(0)(value) and value != 1,
        "2 folds or more, or 0 for none",
    ),
    "splits.published": (lambda value: value is None or isinstance(value, str), "the name of a JSON file, or null"),
}
