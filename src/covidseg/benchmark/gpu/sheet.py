"""One table of the suite: rows of numbers, and how they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sheet:
    """`columns`: {key of a row: (heading, format)}; a value that a row does not have is an empty cell."""

    title: str
    columns: Mapping[str, tuple[str, str]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    told: Sequence[str] = ()

    @property
    def markdown(self) -> str:
        """Title, table, and below it what has to be said."""
        heads = [heading for heading, _ in self.columns.values()]
        sides = ["---" if form in ("", "s") else "--:" for _, form in self.columns.values()]
        lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(sides)}|"]
        lines += [f"| {' | '.join(self._cells(row))} |" for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines, *(["", *self.told] if self.told else [])])

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        found = ((row.get(key), form) for key, (_, form) in self.columns.items())
        return ["" if value is None else format(value, form) for value, form in found]
