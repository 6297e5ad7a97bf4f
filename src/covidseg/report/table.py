"""From case scores to the lines of a table: one for each method, set and structure, and what it is compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from covidseg.evaluation.agreement import Volumes
from covidseg.evaluation.comparison import Comparison, RowScores, compare_all
from covidseg.evaluation.metrics import BY_COLUMN, IN_PAPER, METRICS, UNDEFINED, Metric
from covidseg.evaluation.ranking import Ranking, rank_rows
from covidseg.evaluation.statistics import Summary, breaks_dice_law, case_means, summarise
from covidseg.evaluation.structures import NAMES
from covidseg.report.analysis import (
    Calibration,
    Cases,
    Failure,
    Stratum,
    calibrations,
    cases_of,
    failures,
    strata,
    volumes,
)
from covidseg.report.collect import SETS, Run, TableResults
from covidseg.report.protocol import protocol
from covidseg.report.request import Request, every_pair

PAPER_SET = "test"  # its tables are about its test set, not about the cases of the other site
PAPER_ROUNDING = 0.0005  # it prints three digits


@dataclass(frozen=True)
class Line:
    """What one method scored on one structure of one set of cases.

    `metrics`, by the metric's column, are over cases, each case averaged over the `runs` that scored it; `seed_sds` is
    the sd of the seeds' own means. `n` counts cases; `failed`, by metric, and the three counts below count (run, case)
    pairs out of `scored`: failed is a case with a reference that the metric has no value for. `hours`: of training, a
    run's mean. `law` and `paper_law` say that the printed Dice, sensitivity and precision break the law of means over
    the same cases; `law_same_cases` that ours do so even over the cases where all three are defined, which only wrong
    scores can do.
    """

    method: str
    title: str
    set: str
    structure: str
    runs: int
    expected_runs: int
    seeds: tuple[int, ...]
    n: int
    scored: int
    empty_references: int
    missed: int
    false_alarms: int
    metrics: Mapping[str, Summary]
    failed: Mapping[str, int]
    seed_sds: Mapping[str, float]
    parameters: int | None
    multiply_adds: int | None
    hours: float | None
    paper: tuple[float, float, float] | None
    law: bool
    law_same_cases: bool
    paper_law: bool


@dataclass(frozen=True)
class Block:
    """Everything about one structure on one set: its lines in table order, and what was made of its cases.

    `comparisons`: what the report was asked to compare, corrected together; `all_pairs`: each two methods in Dice,
    corrected together.
    """

    set: str
    structure: str
    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...] = ()
    all_pairs: tuple[Comparison, ...] = ()
    ranking: Ranking | None = None
    strata: tuple[Stratum, ...] = ()
    volumes: tuple[Volumes, ...] = ()
    failures: tuple[Failure, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    protocol: str = ""  # what the numbers were measured on

    @property
    def where(self) -> str:
        """`lesion, test set`."""
        return f"{self.structure}, {self.set} set"

    @property
    def titles(self) -> dict[str, str]:
        """Method -> what it is called."""
        return {line.method: line.title for line in self.lines}

    def place(self, part: str) -> str:
        """The key of a section of the report and of the figures that stand below it."""
        return f"{part}/{self.set}/{self.structure}"


def blocks(results: TableResults, request: Request | None = None) -> list[Block]:
    """One `Block` for each set and structure that was scored; methods without a finished run keep their line.

    Raises `BadInput` where the request names a row that the table does not have.
    """
    request = request or Request()
    methods = list(_methods(results))
    pairs = request.comparisons([method for method, _, _ in methods], results.baseline)
    scored = {(case["set"], case["structure"]) for run in results.finished for case in run.cases}
    if not scored:
        scored = {("test", structure) for structure in NAMES}
    found = []
    for set_name in [name for name in SETS if any(name == key[0] for key in scored)]:
        for structure in [name for name in NAMES if (set_name, name) in scored]:
            shown = [(method, title, runs) for method, title, runs in methods if _segments(runs, structure)]
            lines = tuple(_line(results, *one, set_name, structure) for one in shown)
            found.append(_block(results, request, pairs, lines, set_name, structure, dict(_finished(methods))))
    return found


def _block(
    results: TableResults,
    request: Request,
    pairs: Sequence[tuple[str, str]],
    lines: tuple[Line, ...],
    set_name: str,
    structure: str,
    finished: Mapping[str, list[Run]],
) -> Block:
    methods = [line.method for line in lines]
    runs = {method: [run for run in finished[method] if structure in run.structures] for method in methods}
    cases = {method: cases_of(own, set_name, structure) for method, own in runs.items()}
    patient_of = {case["case"]: case["patient"] for own in cases.values() for case in own}
    columns = dict.fromkeys((*request.metrics, "dice"))
    scored = {column: _scores_by_row(runs, set_name, structure, column) for column in columns}
    asked = {column: scored[column] for column in request.metrics}
    direction = {column: metric.higher_is_better for column, metric in BY_COLUMN.items()}
    dice = scored["dice"]
    return Block(
        set_name,
        structure,
        lines,
        comparisons=tuple(compare_all(asked, pairs, patient_of, direction)),
        all_pairs=tuple(compare_all({"dice": dice}, every_pair(list(dice)), patient_of)),
        ranking=rank_rows(dice, patient_of),
        strata=tuple(strata(cases)),
        volumes=tuple(volumes(cases)),
        failures=tuple(failures(cases)),
        calibrations=tuple(calibrations(runs, set_name, structure)),
        protocol=protocol(results.finished, set_name, structure),
    )


def paper_lawbreakers(results: TableResults) -> list[tuple[str, str]]:
    """(row, structure) of the paper's cells, among the rows shown, that break the Dice law by more than rounding."""
    return [
        (row, structure)
        for row in results.rows
        for structure, values in results.paper.get(row, {}).items()
        if breaks_dice_law(values, rounding=PAPER_ROUNDING)
    ]


def scores(runs: Sequence[Run], set_name: str, structure: str, metric: str) -> dict[str, float]:
    """Case -> its mean score over `runs`, cases without a defined score left out."""
    return case_means((case["case"], case[metric]) for case in cases_of(runs, set_name, structure))


def row_scores(
    runs: Sequence[Run], set_name: str, structure: str, metric: str, of_references: bool = False
) -> RowScores | None:
    """The scores of one row by seed, folds together; None where it has none.

    `of_references`: only cases that have the structure.
    """
    collected: dict[int, list[tuple[str, float | None]]] = {}
    for run in runs:
        for case in cases_of([run], set_name, structure):
            if case["tp"] + case["fn"] or not of_references:
                collected.setdefault(run.seed, []).append((case["case"], case[metric]))
    by_seed = {seed: means for seed, own in collected.items() if (means := case_means(own))}
    return RowScores(by_seed, learned=any(run.learned for run in runs)) if by_seed else None


def method_runs(results: TableResults) -> dict[str, list[Run]]:
    """Method -> its finished runs, those for both structures together."""
    return dict(_finished(list(_methods(results))))


def _finished(methods: Sequence[tuple[str, str, list[Run]]]) -> Iterator[tuple[str, list[Run]]]:
    for method, _, runs in methods:
        yield method, [run for run in runs if run.state == "finished"]


def _segments(runs: Sequence[Run], structure: str) -> bool:
    return any(structure in run.structures for run in runs)


def _scores_by_row(runs: Mapping[str, list[Run]], set_name: str, structure: str, column: str) -> dict[str, RowScores]:
    """For comparisons: a case without a reference is in none where the metric depends on what was predicted there.

    It has a score where a run raises a false alarm and none where it does not, so the better run would lose the case.
    """
    of_references = BY_COLUMN[column].both_empty is UNDEFINED
    found = {method: row_scores(own, set_name, structure, column, of_references) for method, own in runs.items()}
    return {method: own for method, own in found.items() if own}


def _methods(results: TableResults) -> Iterator[tuple[str, str, list[Run]]]:
    """(method, title, runs): a row, with a network for each structure; the same row for each other task of its runs."""
    for row in results.rows:
        own = [run for run in results.runs if run.row == row]
        separate = [run for run in own if run.task in NAMES]
        if separate:
            yield row, results.titles[row], separate
        for task in sorted({run.task for run in own} - set(NAMES)):
            yield f"{row} ({task})", f"{results.titles[row]} ({task})", [run for run in own if run.task == task]


def _line(results: TableResults, method: str, title: str, runs: list[Run], set_name: str, structure: str) -> Line:
    wanted = [run for run in runs if structure in run.structures]
    finished = [run for run in wanted if run.state == "finished"]
    cases = cases_of(finished, set_name, structure)
    patients = {case["case"]: case["patient"] for case in cases}
    metrics = {}
    for metric in METRICS:
        means = scores(finished, set_name, structure, metric.column)
        if means:
            metrics[metric.column] = summarise(list(means.values()), [patients[case] for case in means])
    empty = [case for case in cases if not case["tp"] + case["fn"]]
    sizes = finished[0].metrics if finished else {}
    paper = results.paper.get(method, {}).get(structure) if set_name == PAPER_SET else None
    in_paper = [metric.column for metric in IN_PAPER]
    three = [metrics[name].mean if name in metrics else None for name in in_paper]
    defined = [case for case in cases if all(case[name] is not None for name in in_paper)]
    shared = [sum(case[name] for case in defined) / len(defined) if defined else None for name in in_paper]
    return Line(
        method=method,
        title=title,
        set=set_name,
        structure=structure,
        runs=len(finished),
        expected_runs=len(wanted),
        seeds=tuple(sorted({run.seed for run in finished})),
        n=len(patients),
        scored=len(cases),
        empty_references=len(empty),
        missed=sum(1 for case in cases if case["tp"] + case["fn"] and not case["tp"]),
        false_alarms=sum(1 for case in empty if case["fp"]),
        metrics=metrics,
        failed={metric.column: _failed(cases, metric) for metric in METRICS if metric.column in metrics},
        seed_sds=_seed_sds(finished, set_name, structure),
        parameters=sizes.get("parameters"),
        multiply_adds=sizes.get("multiply_adds"),
        hours=_hours(finished),
        paper=paper,
        law=breaks_dice_law(three),
        law_same_cases=breaks_dice_law(shared),
        paper_law=paper is not None and breaks_dice_law(paper, rounding=PAPER_ROUNDING),
    )


def _failed(cases: Cases, metric: Metric) -> int:
    """(run, case) pairs with a reference and without a value; runs of before there was the metric do not count."""
    present = [case for case in cases if case["tp"] + case["fn"]]
    return sum(case[metric.column] is None and f"{metric.name}: " in case["undefined"] for case in present)


def _seed_sds(runs: Sequence[Run], set_name: str, structure: str) -> dict[str, float]:
    """Metric -> sd of the seeds' own means, where there are several seeds."""
    found = {}
    for metric in METRICS:
        row = row_scores(runs, set_name, structure, metric.column)
        if row and len(row.by_seed) > 1:
            means = [sum(own.values()) / len(own) for own in row.by_seed.values()]
            found[metric.column] = summarise(means, range(len(means))).sd or 0.0
    return found


def _hours(runs: Sequence[Run]) -> float | None:
    """Mean hours of training of the runs that say so."""
    seconds = [run.train_seconds for run in runs if run.train_seconds is not None]
    return sum(seconds) / len(seconds) / 3600 if seconds else None
