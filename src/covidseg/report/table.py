"""From case scores to the lines of a table: one for each method, set and structure, and what it is compared with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from covidseg.evaluation.metrics import IN_PAPER, METRICS
from covidseg.evaluation.statistics import Comparison, Summary, breaks_dice_law, case_means, compare_all, summarise
from covidseg.evaluation.structures import NAMES
from covidseg.report.collect import SETS, Run, TableResults
from covidseg.report.protocol import protocol

PAPER_SET = "test"  # its tables are about its test set, not about the cases of the other site
PAPER_ROUNDING = 0.0005  # it prints three digits


@dataclass(frozen=True)
class Line:
    """What one method scored on one structure of one set of cases.

    `metrics`, by the metric's column, are over cases, each case averaged over the `runs` that scored it; `seeds_sd` is
    the sd of the seeds' own mean Dice. `n` counts cases, the three counts below count (run, case) pairs out of
    `scored`. `law` and `paper_law` say that the printed Dice, sensitivity and precision break the law of means over the
    same cases; `law_same_cases` that ours do so even over the cases where all three are defined, which only wrong
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
    seeds_sd: float | None
    parameters: int | None
    multiply_adds: int | None
    paper: tuple[float, float, float] | None
    law: bool
    law_same_cases: bool
    paper_law: bool


@dataclass(frozen=True)
class Block:
    """Everything about one structure on one set: its lines in table order, and the comparisons by metric."""

    set: str
    structure: str
    lines: tuple[Line, ...]
    comparisons: Mapping[str, tuple[Comparison, ...]]
    protocol: str = ""  # what the numbers were measured on


def blocks(results: TableResults) -> list[Block]:
    """One `Block` for each set and structure that was scored; methods without a finished run keep their line."""
    methods = list(_methods(results))
    scored = {(case["set"], case["structure"]) for run in results.finished for case in run.cases}
    if not scored:
        scored = {("test", structure) for structure in NAMES}
    found = []
    for set_name in [name for name in SETS if any(name == key[0] for key in scored)]:
        for structure in [name for name in NAMES if (set_name, name) in scored]:
            lines = tuple(
                _line(results, method, title, runs, set_name, structure)
                for method, title, runs in methods
                if any(structure in run.structures for run in runs)
            )
            compared = _comparisons(results, methods, set_name, structure)
            measured_on = protocol(results.finished, set_name, structure)
            found.append(Block(set_name, structure, lines, compared, measured_on))
    return found


def paper_lawbreakers(results: TableResults) -> list[tuple[str, str]]:
    """(row, structure) of the paper's cells, among the rows shown, that break the Dice law by more than rounding."""
    return [
        (row, structure)
        for row in results.rows
        for structure, values in results.paper.get(row, {}).items()
        if breaks_dice_law(values, rounding=PAPER_ROUNDING)
    ]


def scores(runs: list[Run], set_name: str, structure: str, metric: str) -> dict[str, float]:
    """Case -> its mean score over `runs`, cases without a defined score left out."""
    return case_means((case["case"], case[metric]) for case in _cases(runs, set_name, structure))


def method_runs(results: TableResults) -> dict[str, list[Run]]:
    """Method -> its finished runs, those for both structures together."""
    return {method: [run for run in runs if run.state == "finished"] for method, _, runs in _methods(results)}


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
    cases = list(_cases(finished, set_name, structure))
    patients = {case["case"]: case["patient"] for case in cases}
    metrics = {}
    for metric in METRICS:
        means = scores(finished, set_name, structure, metric.column)
        if means:
            metrics[metric.column] = summarise(list(means.values()), [patients[case] for case in means])
    seeds = sorted({run.seed for run in finished})
    by_seed = [scores([run for run in finished if run.seed == seed], set_name, structure, "dice") for seed in seeds]
    seed_means = [sum(means.values()) / len(means) for means in by_seed if means]
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
        seeds=tuple(seeds),
        n=len(patients),
        scored=len(cases),
        empty_references=len(empty),
        missed=sum(1 for case in cases if case["tp"] + case["fn"] and not case["tp"]),
        false_alarms=sum(1 for case in empty if case["fp"]),
        metrics=metrics,
        seeds_sd=summarise(seed_means, range(len(seed_means))).sd if seed_means else None,
        parameters=sizes.get("parameters"),
        multiply_adds=sizes.get("multiply_adds"),
        paper=paper,
        law=breaks_dice_law(three),
        law_same_cases=breaks_dice_law(shared),
        paper_law=paper is not None and breaks_dice_law(paper, rounding=PAPER_ROUNDING),
    )


def _comparisons(
    results: TableResults, methods: list[tuple[str, str, list[Run]]], set_name: str, structure: str
) -> dict[str, tuple[Comparison, ...]]:
    runs = {
        method: [run for run in own if run.state == "finished" and structure in run.structures]
        for method, _, own in methods
    }
    patient_of = {case["case"]: case["patient"] for own in runs.values() for case in _cases(own, set_name, structure)}
    compared = {}
    for metric in METRICS:  # Holm's families are one metric each
        means = {method: scores(own, set_name, structure, metric.column) for method, own in runs.items()}
        means = {method: found for method, found in means.items() if found}
        if results.baseline in means:
            comparisons = compare_all(means, results.baseline, patient_of, metric.higher_is_better)
            if comparisons:
                compared[metric.column] = tuple(comparisons)
    return compared


def _cases(runs: list[Run], set_name: str, structure: str) -> Iterator[Mapping[str, Any]]:
    for run in runs:
        for case in run.cases:
            if case["set"] == set_name and case["structure"] == structure:
                yield case
