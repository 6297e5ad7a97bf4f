"""The report as plain tables of strings, which Markdown, LaTeX, HTML and the terminal each show in their own way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covidseg.evaluation.metrics import IN_PAPER, METRICS
from covidseg.evaluation.statistics import Summary
from covidseg.report.collect import Run, TableResults
from covidseg.report.table import Block, Line
from covidseg.runs.folder import last_attempt

OURS_BREAKS, PAPER_BREAKS = "†", "*"  # beside a number that cannot be right
ABSENT = "–"


@dataclass(frozen=True)
class Section:
    """A titled table of strings; `notes` stand below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def sections(results: TableResults, blocks: Sequence[Block]) -> list[Section]:
    """All of the report's tables: the paper's layout for each set, what stands behind it, comparisons, gaps."""
    found = main_sections(results, blocks)
    found += [_details(blocks), *(_comparisons(results, block) for block in blocks if block.comparisons.get("dice"))]
    if results.unfinished:
        found.append(_unfinished(results))
    found.append(_provenance(results))
    return found


def brief(results: TableResults, blocks: Sequence[Block]) -> list[Section]:
    """What a terminal of 80 columns has room for: each structure by itself, and what is not finished."""
    found = [_narrow(results, block) for block in blocks]
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
        n = " / ".join(str(line.n) if line else ABSENT for line in own)
        runs = " / ".join(f"{line.runs} of {line.expected_runs}" if line else ABSENT for line in own)
        rows.append([title, *cells, n, runs])
    notes = _protocol_notes(blocks)
    notes += ["Mean ± sd over cases, each case averaged over its runs. In brackets: the paper's number, on other data."]
    notes += _law_notes(list(lines.values()))
    return Section(f"{results.title}, {blocks[0].set} set", header, rows, notes)


def _narrow(results: TableResults, block: Block) -> Section:
    first, *others = IN_PAPER
    rows = [
        [
            line.title,
            _own_cell(line, first.column) if line.runs else "missing",
            *(_mean(line, metric.column) for metric in others),
            f"{line.paper[0]:.3f}{PAPER_BREAKS if line.paper_law else ''}" if line.paper else ABSENT,
            str(line.n),
            f"{line.missed} of {line.scored}" if line.runs else ABSENT,
            f"{line.runs} of {line.expected_runs}",
        ]
        for line in block.lines
    ]
    header = ["method", *(metric.narrow for metric in IN_PAPER), "paper", "n", "missed", "runs"]
    notes = [*_protocol_notes([block]), *_law_notes(block.lines)]
    return Section(f"{results.title}: {block.structure}, {block.set} set", header, rows, notes)


def _own_cell(line: Line, column: str) -> str:
    return spread(line.metrics.get(column)) + (OURS_BREAKS if line.law else "")


def _mean(line: Line, column: str) -> str:
    return _number(line.metrics[column].mean if column in line.metrics else None)


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
        if line.law and position == 0:
            ours += OURS_BREAKS
        if line.paper:
            ours += f" ({line.paper[position]:.3f}{PAPER_BREAKS if line.paper_law and position == 0 else ''})"
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


def _details(blocks: Sequence[Block]) -> Section:
    header = ["method", "set", "structure", "n", "patients", "runs", "seeds", "Dice median", "Dice 95 % interval"]
    others = [metric for metric in METRICS if not metric.in_paper]
    header += [
        "sd over seeds",
        *(f"{metric.heading} {'↑' if metric.higher_is_better else '↓'}" for metric in others),
        "empty references",
        "missed",
        "false alarms",
        "parameters",
        "multiply-adds",
    ]
    rows = []
    for line in (line for block in blocks for line in block.lines):
        dice = line.metrics.get("dice")
        rows.append(
            [
                line.title,
                line.set,
                line.structure,
                str(line.n),
                str(dice.patients) if dice else ABSENT,
                f"{line.runs} of {line.expected_runs}",
                ", ".join(map(str, line.seeds)) or ABSENT,
                _number(dice.median if dice else None),
                interval(dice.low, dice.high) if dice else ABSENT,
                _number(line.seeds_sd),
                *(spread(line.metrics.get(metric.column), metric.digits) for metric in others),
                *(f"{count} of {line.scored}" for count in (line.empty_references, line.missed, line.false_alarms)),
                _scaled(line.parameters, 1e6, "M"),
                _scaled(line.multiply_adds, 1e9, "G"),
            ]
        )
    notes = [
        "Counts are of (run, case) pairs. Missed: not one voxel of the reference was found. False alarm: something was "
        "predicted where the reference is empty. A score that is undefined (docs: metrics) is in no mean.",
        "Interval: bootstrap over patients. The sd over seeds is that of the seeds' own means.",
    ]
    return Section("What stands behind the means", header, rows, notes)


def _comparisons(results: TableResults, block: Block) -> Section:
    found = block.comparisons["dice"]
    header = ["method", "n", "patients", "difference", "95 % interval", "p (Holm)", "p (permutation)", "p (Wilcoxon)"]
    header += ["effect d", "better in", "detectable"]
    titles = {line.method: line.title for line in block.lines}
    rows = [
        [
            titles[one.row],
            str(one.n),
            str(one.patients),
            f"{one.difference:+.3f}",
            interval(one.low, one.high, signed=True),
            *(_p(value) for value in (one.p_holm, one.p_permutation, one.p_wilcoxon)),
            ABSENT if one.effect is None else f"{one.effect:+.2f}",
            f"{one.superiority:.0%}",
            _number(one.detectable),
        ]
        for one in found
    ]
    notes = [
        "Paired over the same cases, after averaging each case over runs. p: two-sided sign-flip permutation by "
        f"patient; Holm's correction over these {len(found)} comparisons. Detectable: the true difference that so many "
        "patients with this spread reveal with 80 % power; a smaller one is not excluded by a large p.",
    ]
    baseline = titles.get(found[0].baseline, found[0].baseline)
    return Section(f"{block.structure} Dice, {block.set} set: difference from {baseline}", header, rows, notes)


def _unfinished(results: TableResults) -> Section:
    rows = [[run.name, run.state, run.reason or ABSENT] for run in results.unfinished]
    return Section("Not finished, so in no mean above", ["run", "state", "why"], rows)


def _provenance(results: TableResults) -> Section:
    data = _distinct(results.finished, _data)
    facts = {
        "data": data,
        "code": _distinct(results.finished, _commit),
        "device": _distinct(results.finished, _device),
        "versions": _distinct(results.finished, _versions),
    }
    rows = [["runs", f"{len(results.finished)} finished, {len(results.unfinished)} not"]]
    if results.not_scored:
        rows.append(["left out", f"{len(results.not_scored)} trained on every case (fold=all), not scored"])
    rows += [[name, "; ".join(values) or ABSENT] for name, values in facts.items()]
    warning = "These runs were trained on different prepared data: their numbers must not be compared."
    return Section("What made these numbers", ["", ""], rows, [warning] if len(data) > 1 else [])


def spread(summary: Summary | None, digits: int = 3) -> str:
    """`0.708 ± 0.120`, without the sd for one case."""
    if summary is None:
        return ABSENT
    return f"{summary.mean:.{digits}f}" + ("" if summary.sd is None else f" ± {summary.sd:.{digits}f}")


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """`0.651 to 0.758`."""
    if low is None or high is None:
        return ABSENT
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def _scaled(value: float | None, unit: float, letter: str) -> str:
    return ABSENT if value is None else f"{value / unit:.2f} {letter}"


def _distinct(runs: Sequence[Run], what: Callable[[Mapping[str, Any]], str]) -> list[str]:
    return [text for text in dict.fromkeys(what(run.manifest) for run in runs) if text]


def _data(manifest: Mapping[str, Any]) -> str:
    data = manifest.get("data") or {}
    return f"{data.get('name', '')} {data['hash']}".strip() if "hash" in data else ""


def _commit(manifest: Mapping[str, Any]) -> str:
    git = last_attempt(manifest).get("git") or {}
    return f"{git['commit'][:12]}{' (changed)' if git.get('dirty') else ''}" if "commit" in git else ""


def _device(manifest: Mapping[str, Any]) -> str:
    attempt = last_attempt(manifest)
    return f"{attempt.get('processes', 1)} x {attempt['device']}" if "device" in attempt else ""


def _versions(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in (last_attempt(manifest).get("versions") or {}).items())
