"""What a comparison came to, in words: what differs, by how much, how surely, and what could not have been seen."""

from collections.abc import Sequence

from covidseg.evaluation.comparison import OF_NETWORKS, Comparison
from covidseg.evaluation.metrics import BY_COLUMN, Metric
from covidseg.report.cells import interval, number
from covidseg.report.findings import ONE_SEED, Titles, hopeless
from covidseg.report.section import Section
from covidseg.report.table import Block


def verdict(block: Block, titles: Titles) -> Section:
    """The block's comparisons in a few sentences; of each metric that was asked for."""
    notes = []
    for column in dict.fromkeys(one.metric for one in block.comparisons):
        compared = [one for one in block.comparisons if one.metric == column]
        notes.append(" ".join(_sentences(compared, BY_COLUMN[column], titles)))
    if not notes:
        notes = ["Nothing can be compared yet: it takes two rows with finished runs that scored the same cases."]
    elif any(one.of == OF_NETWORKS for one in block.comparisons):
        notes.append(ONE_SEED)
    return Section(
        f"{block.structure.capitalize()}s, {block.set} set: in words",
        notes=notes,
        key=block.place("verdict"),
    )


def _sentences(compared: Sequence[Comparison], metric: Metric, titles: Titles) -> list[str]:
    surely = [one for one in compared if one.is_significant]
    better, worse = ([one for one in surely if _is_better(one, metric) == wanted] for wanted in (True, False))
    baselines = dict.fromkeys(one.baseline for one in compared)
    base = titles[compared[0].baseline] if len(baselines) == 1 else "what it was compared with"
    found = []
    for word, ones in (("better", better), ("worse", worse)):
        if ones:
            found.append(
                f"In {metric.title} {word} than {base}: {'; '.join(_told(one, metric, titles) for one in ones)}."
            )
    if not surely:
        largest = max(compared, key=lambda one: abs(one.difference))
        found.append(f"No row differs from {base} in {metric.title} beyond chance.")
        found.append(f"The largest difference: {_told(largest, metric, titles)}.")
    return [*found, _design(compared), *_limits(compared, metric)]


def _told(one: Comparison, metric: Metric, titles: Titles) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    size = f"{one.difference:+.{metric.digits}f}{unit}"
    bounds = interval(one.low, one.high, metric.digits, signed=True)
    return f"{titles[one.row]} {size} (95 % interval {bounds}, p {one.p_holm_text})"


def _design(compared: Sequence[Comparison]) -> str:
    cases, patients = (_range([getattr(one, name) for one in compared]) for name in ("n", "patients"))
    seeds = _range([count for one in compared for count in one.seeds])
    many = len(compared)
    rows = f"{many} comparison{'s' if many != 1 else ''}"
    return (
        f"{rows}, on {cases} cases of {patients} patients, with {seeds} seed{'' if seeds == '1' else 's'} of each row."
    )


def _limits(compared: Sequence[Comparison], metric: Metric) -> list[str]:
    if said := hopeless(compared):
        return [said]
    sizes = [one.detectable for one in compared if one.detectable is not None]
    if not sizes:
        return []
    if min(sizes) > metric.greatest:
        found = "would be found four times in five: seeds and cases vary too much"
        return [f"No difference that {metric.title} can have {found}."]
    between = "or more" if max(sizes) > metric.greatest else f"to {number(max(sizes), metric.digits)}"
    needed = f"{number(min(sizes), metric.digits)} {between if len(sizes) > 1 else ''}".strip()
    return [f"A true difference has to be {needed} to be found four times in five: a smaller one is not excluded."]


def _is_better(one: Comparison, metric: Metric) -> bool:
    return (one.difference > 0) == metric.higher_is_better


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
