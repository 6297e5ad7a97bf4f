"""How a number is written, the same in every table and figure of the report."""

from covidseg.evaluation.statistics import Summary

ABSENT = "–"


def number(value: float | None, digits: int = 3) -> str:
    """`0.708`."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def spread(summary: Summary | None, digits: int = 3) -> str:
    """`0.708 ± 0.120`, without the sd for one case."""
    if summary is None:
        return ABSENT
    return number(summary.mean, digits) + ("" if summary.sd is None else f" ± {number(summary.sd, digits)}")


def interval(low: float | None, high: float | None, digits: int = 3, signed: bool = False) -> str:
    """`0.651 to 0.758`."""
    if low is None or high is None:
        return ABSENT
    sign = "+" if signed else ""
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def scaled(value: float | None, unit: float, letter: str) -> str:
    """`34.20 M`."""
    return ABSENT if value is None else f"{value / unit:.2f} {letter}"


def share(part: int, whole: int) -> str:
    """`2 of 51`."""
    return f"{part} of {whole}"
