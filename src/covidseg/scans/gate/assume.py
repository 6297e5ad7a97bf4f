"""What a user may vouch for where a file does not say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from covidseg.system.errors import BadInput

AXES = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}  # LPS row and sign


@dataclass(frozen=True)
class Assume:
    """What a user vouches for where a file does not say it. Anything not given here must be in the file.

    hu: the values are Hounsfield units although they do not look like it. offset: HU = stored value + offset.
    window_8bit: (low, high), HU that the stored values 0 and 255 stand for. fill: HU in place of NaN and infinity.
    orientation: where the x, y and z index axes point, such as "LPS". partial: fewer slices than the series announces.
    size: voxels or extents that no CT of a chest has are right: HRCT with gaps, a scan of the whole body.
    tilt: slices of a tilted gantry are to be moved back above one another.
    option: where in the configuration all this is said, for the remedies of the gate; "" where it cannot be said.
    """

    hu: bool = False
    offset: float = 0.0
    window_8bit: tuple[float, float] | None = None
    fill: float | None = None
    orientation: str | None = None
    partial: bool = False
    size: bool = False
    tilt: bool = False
    option: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, option: str = "") -> Self:
        """From plain options; `BadInput` for a key or a value that means nothing."""
        what, names = option or "assume", ", ".join(_OPTIONS)
        if not isinstance(given, Mapping | None):
            raise BadInput(what, f"is {given!r}", f"give {{name: value}} with names out of {names}")
        given = {name: value for name, value in (given or {}).items() if value is not None}
        if unknown := sorted(set(given) - set(_OPTIONS)):
            raise BadInput(what, f"unknown option {unknown[0]!r}", f"use one of {names}")
        for name, value in given.items():
            parse, wanted = _OPTIONS[name]
            try:
                given[name] = parse(value)
            except (TypeError, ValueError):
                raise BadInput(f"{what}.{name}", f"is {value!r}", f"give {wanted}") from None
        return cls(**given, option=option)

    def or_say(self, remedy: str, *sayings: str) -> str:
        """`remedy`, and for whoever knows better the options to give: "hu=true if it is HU"."""
        said = [f"{self.option}.{saying}" for saying in sayings if self.option]
        return ", or ".join([remedy, *said])


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _window(value: Any) -> tuple[float, float]:
    low, high = map(_number, value)
    if not low < high:
        raise ValueError
    return low, high


def _orientation(value: Any) -> str:
    letters = str(value).upper()
    if sorted(AXES.get(letter, (-1,))[0] for letter in letters) != [0, 1, 2]:
        raise ValueError
    return letters


_OPTIONS = {
    "hu": (_switch, "true or false"),
    "offset": (_number, "a number of HU"),
    "window_8bit": (_window, "[low, high] in HU"),
    "fill": (_number, "a number of HU"),
    "orientation": (_orientation, "three letters such as LPS or RAS"),
    "partial": (_switch, "true or false"),
    "size": (_switch, "true or false"),
    "tilt": (_switch, "true or false"),
}
