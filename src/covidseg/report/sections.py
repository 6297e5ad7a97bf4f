"""The report as plain tables of strings, which Markdown, HTML and the terminal each show in their own way."""

from collections.abc import Sequence

from covidseg.evaluation.metrics import IN_PAPER, METRICS
from covidseg.evaluation.statistics import COVERAGE
from covidseg.report import findings
from covidseg.report.cells import ABSENT, interval, number, scaled, share, spread
from covidseg.report.collect import TableResults
from covidseg.report.methods import methods, provenance, reproduce
from covidseg.report.request import Request
from covidseg.report.section import Section
from covidseg.report.table import Block, Line
from covidseg.report.verdict import verdict

OURS_BREAKS, PAPER_BREAKS = "†", "*"  # beside a number that cannot be right


def sections(results: TableResults, blocks: Sequence[Block]) -> list[Section]:
    """All of the report: the verdict and the paper's layout for each set, what stands behind, gaps, how it was made."""
    found = []
    for set_name, table in zip(
        dict.fromkeys(block.set for block in blocks), main_sections(results, blocks), strict=True
    ):
        own = [block for block in blocks if block.set == set_name]
        found += [verdict(block, block.titles) for block in own]
        found.append(table)
    for block in blocks:
        found += [section for part in findings.PARTS.values() for section in part(block, block.titles, False)]
    found += [*(_every_metric(block) for block in blocks if block.lines), _counts(blocks)]
    if results.unfinished:
        found.append(_unfinished(results))
    return [*found, methods(results, blocks), reproduce(results), provenance(results)]


def brief(results: TableResults, blocks: Sequence[Block], request: Request) -> list[Section]:
    """What a terminal of 80 columns has room for: the part asked for of each structure, and what is not finished."""
    if request.part == "table":
        found = [_narrow(results, block) for block in blocks]
    else:
        found = []
        for block in blocks:
            titles = {method: _short_title(results, title) for method, title in block.titles.items()}
            found += findings.PARTS[request.part](block, titles, True)
    return found + ([_unfinished(results)] if results.unfinished else [])


def main_sections(results: TableResults, blocks: Sequence[Block]) -> list[Section]:
    """The table in the paper's layout, once for each set."""
    sets = dict.fromkeys(block.set for block in blocks)
    return [_main(results, [block for block in blocks if block.set == name]) for name in sets]


def _main(results: TableResults, blocks: Sequence[Block]) -> Section:
    """The paper's layout: a method for each line, Dice, sensitivity and precision of lesions, then of lungs."""
    lines = {(line.method, block.structure): line for block in blocks for line in block.lines}
    titles = {line.method: line.title for block in blocks for line in block.lines}
    header = ["method", *(f"{block.structure} {metric.narrow}" for block in blocks for metric in IN_PAPER)]
    header += ["n", "runs"]
    rows = []
    for method, title in titles.items():
        own = [lines.get((method, block.structure)) for block in blocks]
        cells = [cell for line in own for cell in _main_cells(line)]
        n = " / ".join(_cases(line) for line in own)
        runs = " / ".join(f"{line.runs} of {line.expected_runs}" if line else ABSENT for line in own)
        rows.append([title, *cells, n, runs])
    notes = _protocol_notes(blocks)
    notes += ["Mean ± sd over n cases, each case averaged over its runs; [k]: over k cases, where that is not n."]
    if any(line.paper for line in lines.values()):
        notes += ["In brackets: the paper's number, on other data."]
    notes += _law_notes(list(lines.values()))
    return Section(f"{results.title}, {blocks[0].set} set", header, rows, notes, key=f"table/{blocks[0].set}")


def _narrow(results: TableResults, block: Block) -> Section:
    first, *others = IN_PAPER
    rows = []
    for line in block.lines:
        summary = line.metrics.get(first.column)
        dice = _mean(line, first.column) + (OURS_BREAKS if line.law else "")
        rows.append(
            [
                _short_title(results, line.title),
                dice if line.runs else "missing",
                number(summary.sd if summary else None),
                *(_mean(line, metric.column) for metric in others),
                f"{line.paper[0]:.3f}{PAPER_BREAKS if line.paper_law else ''}" if line.paper else ABSENT,
                _own_numbers(line),
                f"{line.missed}/{line.scored}" if line.runs else ABSENT,
                f"{line.runs}/{line.expected_runs}",
            ]
        )
    header = ["method", first.narrow, "sd", *(metric.narrow for metric in others), "paper", "n", "missed", "runs"]
    notes = [*_protocol_notes([block]), *_law_notes(block.lines)]
    return Section(f"{results.title}: {block.where}", header, rows, notes)


def _short_title(results: TableResults, title: str) -> str:
    """`+ FV` below `UNet4`, for `UNet4 + FV`."""
    base = results.titles[results.baseline]
    return title.removeprefix(f"{base} ") if title.startswith(f"{base} + ") else title


def _mean(line: Line, column: str) -> str:
    return number(line.metrics[column].mean if column in line.metrics else None)


def _own_numbers(line: Line) -> str:
    """The n of each of the paper's metrics, once where they are the same."""
    numbers = [line.metrics[metric.column].n if metric.column in line.metrics else 0 for metric in IN_PAPER]
    return "/".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def _own_n(line: Line, column: str) -> str:
    """The n of a mean that is not over all of the line's cases."""
    summary = line.metrics.get(column)
    return "" if summary is None or summary.n == line.n else f" [{summary.n}]"


def _cases(line: Line | None) -> str:
    return str(line.n) if line else ABSENT


def _protocol_notes(blocks: Sequence[Block]) -> list[str]:
    """Once, where all structures were measured alike."""
    different = {block.protocol for block in blocks if block.protocol}
    if len(different) < 2:
        return [f"Protocol: {text}." for text in different]
    return [f"Protocol, {block.structure}: {block.protocol}." for block in blocks if block.protocol]


def _main_cells(line: Line | None) -> list[str]:
    if line is None:
        return [ABSENT] * len(IN_PAPER)
    cells = []
    for position, metric in enumerate(IN_PAPER):
        ours = spread(line.metrics.get(metric.column), metric.digits) if line.runs else "missing"
        ours += _own_n(line, metric.column)
        if line.law and position == 0:
            ours += OURS_BREAKS
        if line.paper:
            ours += f"\n({line.paper[position]:.3f}{PAPER_BREAKS if line.paper_law and position == 0 else ''})"
        cells.append(ours)
    return cells


def _law_notes(lines: Sequence[Line]) -> list[str]:
    law = "For each case Dice = 2SP/(S+P), so over the same cases S+P-1 <= Dice <= (S+P)/2"
    notes = []
    if broken := [line for line in lines if line.paper_law]:
        names = ", ".join(f"{line.structure} {line.title}" for line in broken)
        notes.append(f"{PAPER_BREAKS} {law}. The paper's numbers break this by more than rounding: {names}.")
    for line in lines:
        if line.law:
            n = ", ".join(f"{line.metrics[metric.column].n} for {metric.narrow}" for metric in IN_PAPER)
            why = (
                "the scores themselves are wrong"
                if line.law_same_cases
                else f"its means are over different cases ({n})"
            )
            notes.append(f"{OURS_BREAKS} {law}. {line.structure} {line.title} breaks this: {why}.")
    return notes


def _every_metric(block: Block) -> Section:
    """Each metric of each method: its mean with its own spread, median, interval, n and failures beside it."""
    header = ["metric", "method", "mean ± sd", "median", "95 % interval", "n", "patients", "failed", "sd over seeds"]
    rows = []
    for metric in METRICS:
        for line in block.lines:
            if (summary := line.metrics.get(metric.column)) is None:
                continue
            rows.append(
                [
                    f"{metric.heading} {'↑' if metric.higher_is_better else '↓'}",
                    line.title,
                    spread(summary, metric.digits),
                    number(summary.median, metric.digits),
                    interval(summary.low, summary.high, metric.digits),
                    str(summary.n),
                    str(summary.patients),
                    share(line.failed[metric.column], line.scored),
                    number(line.seed_sds.get(metric.column), metric.digits),
                ]
            )
    notes = [
        "n: cases with a value in at least one run. Failed: (run, case) pairs whose reference is not empty and that "
        "have no value, because nothing was predicted; they are in no mean, so a network that fails often looks better "
        "than it is. Interval of the mean: bootstrap over patients, for these trained networks."
    ]
    return Section(f"Every metric: {block.where}", header, rows, notes + _coverage_note(block))


def _coverage_note(block: Block) -> list[str]:
    """What the bootstrap holds with so few patients."""
    patients = min((line.metrics["dice"].patients for line in block.lines if "dice" in line.metrics), default=0)
    known = [n for n in COVERAGE if n <= patients]
    if not known or patients >= 20:
        return []
    return [
        f"With {patients} patients these intervals promise too much: for skewed scores those of {known[-1]} patients "
        f"held the true mean in {COVERAGE[known[-1]]:.0%} of trials instead of 95 % (experiments/statistics)."
    ]


def _counts(blocks: Sequence[Block]) -> Section:
    header = ["method", "set", "structure", "n", "runs", "seeds", "empty references", "missed", "false alarms"]
    header += ["parameters", "multiply-adds", "hours of a run"]
    rows = [
        [
            line.title,
            line.set,
            line.structure,
            str(line.n),
            share(line.runs, line.expected_runs),
            ", ".join(map(str, line.seeds)) or ABSENT,
            *(share(count, line.scored) for count in (line.empty_references, line.missed, line.false_alarms)),
            scaled(line.parameters, 1e6, "M"),
            scaled(line.multiply_adds, 1e9, "G"),
            number(line.hours, 2),
        ]
        for block in blocks
        for line in block.lines
    ]
    notes = [
        "Counts are of (run, case) pairs. Missed: not one voxel of the reference was found. False alarm: something was "
        "predicted where the reference is empty. A score that is undefined (docs: metrics) is in no mean.",
    ]
    return Section("Cases, runs and cost", header, rows, notes)


def _unfinished(results: TableResults) -> Section:
    rows = [[run.name, run.state, run.reason or ABSENT] for run in results.unfinished]
    return Section("Not finished, so in no mean above", ["run", "state", "why"], rows)
