"""What a user may vouch for where a file does not say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from covidseg.errors import BadInput

AXES = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}  # LPS row and sign


@dataclass(frozen=True)
class Assume:
    """What a user vouches for where a file does not say it. Anything not given here must be in the file.

    hu: the values are Hounsfield units although they do not look like it. offset: HU = stored value + offset.
    window_8bit: (low, high), HU that the stored values 0 and 255 stand for. fill: HU in place of NaN and infinity.
    orientation: where the x, y and z index axes point, such as "LPS". partial: fewer slices than the series announces.
    """

    hu: bool = False
    offset: float = 0.0
    window_8bit: tuple[float, float] | None = None
    fill: float | None = None
    orientation: str | None = None
    partial: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Self:
        """From plain options; `BadInput` for a key or a value that means nothing."""
        given = {name: value for name, value in (given or {}).items() if value is not None}
        if unknown := sorted(set(given) - set(_OPTIONS)):
            raise BadInput("assume", f"unknown option {unknown[0]!r}", f"use one of {', '.join(_OPTIONS)}")
        for name, value in given.items():
            parse, wanted = _OPTIONS[name]
            try:
                given[name] = parse(value)
            except (TypeError, ValueError):
                raise BadInput(f"assume.{name}", f"is {value!r}", f"give {wanted}") from None
        return cls(**given)


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
}
