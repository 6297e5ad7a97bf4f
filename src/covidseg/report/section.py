"""A part of the report: a titled table of strings, or text alone."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A titled table of strings; `code` stands above it and `notes` below. Without rows these are all of it."""

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    code: str = ""
    key: str = ""  # of the figures that stand below it on the page
