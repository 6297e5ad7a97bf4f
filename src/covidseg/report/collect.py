"""Reading a table's runs: which there are, which should be, what each scored. None is dropped without being named."""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from covidseg.config.plain import as_dict, load_yaml
from covidseg.data.prepare.splits import ALL, HELD_OUT
from covidseg.evaluation.metrics import BY_COLUMN
from covidseg.evaluation.results import COLUMNS
from covidseg.evaluation.structures import NAMES
from covidseg.runs.folder import NOT_SCORED, UNSCORED, RunFolder, run_identity
from covidseg.system.errors import BadInput

THRESHOLD_ROW = "threshold"  # of covidseg.cli.baseline: what tables without a baseline of their own are compared with
SETS = (*HELD_OUT, "validation")  # in the order of the report
_REQUIRED = {
    name for name in COLUMNS if name not in BY_COLUMN or BY_COLUMN[name].in_paper
}  # older runs lack later metrics
_TEXT = {"case", "patient", "site", "set", "structure", "undefined"}


@dataclass(frozen=True)
class Run:
    """One run folder, there or only expected. `state` is `finished` where there are scores; `reason` says why not.

    `structures`: what the run's task segments, whatever the task is called.
    """

    row: str
    task: str
    seed: int
    fold: int | str | None
    folder: Path
    state: str
    structures: tuple[str, ...] = ()
    reason: str = ""
    cases: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: DictConfig | None = None

    @property
    def learned(self) -> bool:
        """Whether another seed would have given other scores: not so for a fitted threshold."""
        return "threshold" not in self.metrics

    @property
    def train_seconds(self) -> float | None:
        """Of training, where the run says so."""
        train = self.metrics.get("train")
        return train.get("seconds") if isinstance(train, Mapping) else None

    @property
    def name(self) -> str:
        return f"{self.row}/{self.task}/{self.folder.name}"


@dataclass(frozen=True)
class TableResults:
    """A table's rows in the order they are shown, and every run that is there or missing.

    `paper[row][structure]` is the paper's (Dice, sensitivity, precision); `baseline` the row the others are compared
    with. `not_scored`: the runs that asked for no score, and so are no part of the table.
    """

    table: str
    title: str
    titles: Mapping[str, str]
    baseline: str
    paper: Mapping[str, Mapping[str, tuple[float, float, float]]]
    runs: tuple[Run, ...]
    not_scored: tuple[Run, ...] = ()

    @property
    def rows(self) -> list[str]:
        return list(self.titles)

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.state == "finished"]

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if run.state != "finished"]


def collect(runs: Path | str, experiments: Sequence[Path] = ()) -> TableResults:
    """Results of the table whose runs lie in the folder `runs` (`runs/table2`).

    Expected are the rows that `<table>/*.yaml` in the folders `experiments` define, where there are any, with each
    task, seed and fold that any row was run with. Raises `BadInput` where there is neither a run nor a row, or no run
    that is to be scored.
    """
    runs = Path(runs)
    table = runs.name
    everything = [run for folder in sorted(runs.glob("*/*/seed*")) if (run := _run(folder))]
    not_scored = tuple(run for run in everything if run.state == NOT_SCORED)
    there = [run for run in everything if run.fold != ALL]
    if everything and not there:
        wrong = f"all {len(everything)} runs there are were trained on every case (fold={ALL}) and ask for no score"
        raise BadInput(f"table={table}", wrong, "src/evaluate.py run=... data=... scores one on other data")
    found = {(run.row, run.task, run.seed, run.fold): run for run in there}
    expected = _expected_rows(table, experiments)
    if not found and not expected:
        raise BadInput(f"table={table}", "there are no such runs", f"tables with runs: {_tables(runs.parent)}")
    known = paper_tables().get(table, {"title": table, "baseline": None, "rows": {}})
    rows = [row for row in known["rows"] if row in expected or any(row == key[0] for key in found)]
    rows += sorted({*expected, *(key[0] for key in found)} - set(rows))
    settings = sorted({key[1:] for key in found}, key=lambda s: (s[0], s[1], -1 if s[2] is None else s[2]))
    settings = settings or [(task, 0, None) for task in NAMES]
    wanted = {(row, *setting) for row in expected for setting in settings} | found.keys()
    segments = {run.task: run.structures for run in there}
    order = {row: position for position, row in enumerate(rows)}
    return TableResults(
        table=table,
        title=known["title"],
        titles={row: known["rows"].get(row, {}).get("title", row) for row in rows},
        baseline=next(row for row in (known["baseline"], THRESHOLD_ROW, *rows) if row in rows),
        paper={
            row: {structure: tuple(values[structure]) for structure in NAMES if structure in values}
            for row, values in known["rows"].items()
        },
        runs=tuple(
            found.get(key) or _missing(runs, *key, segments.get(key[1], _by_name(key[1])))
            for key in sorted(wanted, key=lambda k: (order[k[0]], k[1], k[2], -1 if k[3] is None else k[3]))
        ),
        not_scored=not_scored,
    )


@cache
def paper_tables() -> dict[str, Any]:
    """The content of paper.yaml."""
    return as_dict(load_yaml(Path(__file__).with_name("paper.yaml")))


def _expected_rows(table: str, experiments: Sequence[Path]) -> list[str]:
    """The `row` of every YAML file of the table, which is also its file name unless it says otherwise."""
    files = [file for folder in experiments for file in sorted((Path(folder) / table).glob("*.yaml"))]
    return list(dict.fromkeys(str(load_yaml(file).get("row") or file.stem) for file in files))


def _run(folder: Path) -> Run | None:
    if (name := run_identity(folder)) is None or not folder.is_dir():
        return None
    run = RunFolder(folder)
    row, task = folder.parts[-3:-1]
    config = _config(run)
    made = partial(Run, row, task, *name, folder, structures=_structures(config, task), config=config)
    if not run.has_results:
        status = run.status or {}
        state = str(status.get("state", "waiting"))
        if state in ("running", "finished") and not run.is_locked():  # `finished` is only true with metrics.json
            state = "killed"
        return made(state=state, reason=str(status.get("reason") or _progress(status)))
    try:
        cases = tuple(_read_cases(folder / "cases.csv"))
        if (metrics := run.metrics) is None:
            raise ValueError("metrics.json is not that of a run")
        manifest = run.manifest or {}  # a threshold baseline has none
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        unread = f"its results cannot be read ({type(error).__name__})"
        return made(state="damaged", reason=unread)
    if run.asks_for_no_score:
        return made(state=NOT_SCORED, metrics=metrics, manifest=manifest)
    if not cases:
        return made(state="failed", reason=UNSCORED)
    return made(state="finished", cases=cases, metrics=metrics, manifest=manifest)


def _config(run: RunFolder) -> DictConfig | None:
    """None where there is none that can be read: a report needs it for words alone."""
    with suppress(BadInput):
        return run.config
    return None


def _structures(config: DictConfig | None, task: str) -> tuple[str, ...]:
    """By the run's configuration; a folder without one is taken by the name of its task."""
    if config is not None and config.get("task", {}).get("structures"):
        return tuple(sorted(map(str, config.task.structures)))
    return _by_name(task)


def _by_name(task: str) -> tuple[str, ...]:
    return (task,) if task in NAMES else NAMES


def _missing(runs: Path, row: str, task: str, seed: int, fold: int | str | None, structures: tuple[str, ...]) -> Run:
    folder = runs / row / task / (f"seed{seed}" + ("" if fold is None else f"-fold{fold}"))
    return Run(row, task, seed, fold, folder, state="missing", structures=structures, reason="not started")


def _progress(status: Mapping[str, Any]) -> str:
    return f"step {status['step']} of {status['max_steps']}" if {"step", "max_steps"} <= status.keys() else ""


def _read_cases(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if missing := _REQUIRED - set(reader.fieldnames or ()):
            raise ValueError(f"columns {sorted(missing)} are missing")
        return [{key: _value(key, row.get(key, "")) for key in COLUMNS} for row in reader]


def _value(column: str, text: str) -> Any:
    if column in _TEXT:
        return text
    number = float(text) if text else None
    greatest = BY_COLUMN[column].greatest if column in BY_COLUMN else math.inf
    if number is not None and not 0 <= number < greatest + 1e-9:
        raise ValueError(f"{column} {text}")
    return number


def _tables(runs: Path) -> str:
    names = sorted({folder.parts[-4] for folder in runs.glob("*/*/*/seed*")})
    return ", ".join(names) or "none yet"
