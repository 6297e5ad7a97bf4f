"""What a report is asked for beside its table: what to compare, in which metrics, where to, with pictures or not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

from covidseg.config.choices import did_you_mean
from covidseg.evaluation.metrics import BY_COLUMN, METRICS
from covidseg.system.errors import BadInput

PARTS = ("table", "comparisons", "ranking", "agreement", "strata", "worst", "calibration")  # that a terminal can show
CASES = ("all", "chosen", "none")  # that can be looked at slice by slice
_BY_NAME = {metric.name: metric.column for metric in METRICS}
_FOLDER = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Request:
    """`pairs`: methods to compare, row and baseline, None for every row with `baseline` (None: the table's own).

    `metrics` are columns of cases.csv; `part` is what the terminal shows; `cases` are those that the page opens.
    """

    baseline: str | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    metrics: tuple[str, ...] = ("dice",)
    results: str = "results"
    pictures: bool = True
    cases: str = "all"
    part: str = "table"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From `conf/report.yaml`'s options. Raises `BadInput` for what none of them can be."""
        return cls(
            baseline=None if options["baseline"] is None else str(options["baseline"]),
            pairs=_pairs(options["pairs"]),
            metrics=_metrics(options["metrics"]),
            results=_folder(options["results"]),
            pictures=_truth(options["pictures"]),
            cases=_one_of("cases", str(options["cases"]), CASES, "is no choice of cases"),
            part=_one_of("part", str(options["part"]), PARTS, "there is no such part"),
        )

    def comparisons(self, methods: Sequence[str], default: str) -> list[tuple[str, str]]:
        """(method, baseline) of what is compared. Raises `BadInput` where a name is no method of the table's."""
        if self.pairs is not None:
            for name in (name for pair in self.pairs for name in pair):
                _known(f"pairs={[list(pair) for pair in self.pairs]}", name, methods)
            return list(self.pairs)
        if self.baseline is not None:
            _known(f"baseline={self.baseline}", self.baseline, methods)
        base = self.baseline or default
        return [(method, base) for method in methods if method != base]


def every_pair(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(later, earlier) of all pairs of methods."""
    return [(later, earlier) for earlier, later in combinations(methods, 2)]


def _pairs(value: Any) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    remedy = "pairs of rows: 'pairs=[[full,fv],[fv,fv_ungated]]'"
    if not _is_list(value) or not value or not all(_is_list(pair) and len(pair) == 2 for pair in value):
        raise BadInput(f"pairs={_shown(value)}", "is no list of pairs", remedy)
    pairs = tuple((str(row), str(base)) for row, base in value)
    for row, base in pairs:
        if row == base:
            raise BadInput(f"pairs={_shown(value)}", f"{row} cannot be compared with itself", remedy)
    return tuple(dict.fromkeys(pairs))


def _metrics(value: Any) -> tuple[str, ...]:
    names = [str(name) for name in (value if _is_list(value) else [value])]
    columns = [name if name in BY_COLUMN else _BY_NAME.get(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column is None:
            raise BadInput(f"metrics={name}", "is no metric", f"{did_you_mean(name, _BY_NAME)}{', '.join(_BY_NAME)}")
    if not columns:
        raise BadInput("metrics=[]", "compares nothing", f"one or more of {', '.join(_BY_NAME)}")
    return tuple(dict.fromkeys(column for column in columns if column))


def _folder(value: Any) -> str:
    if not _FOLDER.fullmatch(str(value)):
        remedy = "a name such as results-covid8; paths.results says where the table's folder lies"
        raise BadInput(f"results={value}", "is no name of a folder", remedy)
    return str(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"pictures={value}", "is neither true nor false", "pictures=true or pictures=false")
    return value


def _one_of(option: str, value: str, known: Sequence[str], wrong: str) -> str:
    if value not in known:
        raise BadInput(f"{option}={value}", wrong, f"{did_you_mean(value, known)}{', '.join(known)}")
    return value


def _known(option: str, name: str, methods: Iterable[str]) -> None:
    methods = list(methods)
    if name not in methods:
        remedy = f"{did_you_mean(name, methods)}rows of this table: {', '.join(methods)}"
        raise BadInput(option, f"{name} is no row of the table", remedy)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _shown(value: Any) -> str:
    return str(value).replace("'", "")
