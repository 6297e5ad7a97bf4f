"""What the cases of one structure say about its methods, as tables: differences, ranks, volumes, failures."""

from collections.abc import Callable, Mapping, Sequence

from covidseg.evaluation.comparison import OF_NETWORKS, Comparison
from covidseg.evaluation.metrics import BY_COLUMN, Metric
from covidseg.evaluation.statistics import CONFIDENCE, Summary
from covidseg.report.cells import ABSENT, interval, number, spread
from covidseg.report.section import Section
from covidseg.report.table import Block

_WIDE = {"p", "patients", "seeds", "effect d", "better in"}  # columns that a terminal has no room for
Titles = Mapping[str, str]  # method -> how it is called in a table
ONE_SEED = (
    "One seed each: this compares two trained networks, not two methods. Other seeds of equal methods would differ, "
    "too, and no test here knows by how much (experiments/statistics); seed=0,1,2 trains what a test of methods needs."
)


def comparisons(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """What was compared, with one correction; then how every two methods differ."""
    if not block.comparisons:
        return []
    baselines = dict.fromkeys(one.baseline for one in block.comparisons)
    left_out = {"against"} if len(baselines) == 1 else set()
    if narrow:
        left_out |= _WIDE | ({"metric"} if len({one.metric for one in block.comparisons}) == 1 else set())
    cells = [_comparison(one, titles, narrow) for one in block.comparisons]
    header = [name for name in cells[0] if name not in left_out]
    rows = [[own[name] for name in header] for own in cells]
    against = f" from {titles[block.comparisons[0].baseline]}" if len(baselines) == 1 else ""
    title = f"Differences{against}: {block.where}"
    found = [Section(title, header, rows, comparison_notes(block.comparisons), key=block.place("comparisons"))]
    return found if narrow else [*found, *_matrix(block, titles)]


def _comparison(one: Comparison, titles: Titles, narrow: bool) -> dict[str, str]:
    metric = BY_COLUMN[one.metric]
    return {
        "method": titles[one.row],
        "against": titles[one.baseline],
        "metric": metric.narrow if narrow else metric.heading,
        "difference": f"{one.difference:+.{metric.digits}f}",
        "95 % interval": interval(one.low, one.high, metric.digits, signed=True),
        "p (Holm)": one.p_holm_text,
        "p": one.p_text,
        "n": str(one.n),
        "patients": str(one.patients),
        "seeds": " and ".join(map(str, one.seeds)),
        "detectable": _detectable(one.detectable, metric),
        "effect d": ABSENT if one.effect is None else f"{one.effect:+.2f}",
        "better in": f"{one.superiority:.0%}",
    }


def _detectable(difference: float | None, metric: Metric) -> str:
    """A share cannot differ by more than 1."""
    if difference is not None and difference > metric.greatest:
        return f"> {metric.greatest:g}"
    return number(difference, metric.digits)


def comparison_notes(compared: Sequence[Comparison]) -> list[str]:
    """What was tested, what could have been found, and what no result here could show."""
    family = compared[0].family
    notes = []
    networks = [one for one in compared if one.of == OF_NETWORKS]
    if networks:
        notes.append(ONE_SEED if len(networks) == len(compared) else f"Where a row has one seed: {ONE_SEED}")
    if said := hopeless(compared):
        notes.append(said)
    notes.append(
        "Paired over the cases with a reference that every run of both has a score for. p, two-sided: with several "
        "seeds of each row, t test with seeds and patients as random factors; with one, each patient's sign flipped or "
        f"not{_smallest(compared)}. Holm's correction over the {family} comparisons shown. Detectable: the true "
        "difference that this design and spread reveal with 80 % power at the level left "
        f"({(1 - CONFIDENCE) / max(family, 1):.2g}); a smaller one is not excluded by a large p."
    )
    return notes


def _smallest(compared: Sequence[Comparison]) -> str:
    """The limit of the permutation tests among them."""
    limits = [one.smallest_p for one in compared if one.p is not None and one.smallest_p]
    return f" (the smallest possible p: {min(limits):.2g})" if limits else ""


def ranking(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """How sure the order of the methods is."""
    if block.ranking is None:
        return []
    found = block.ranking
    rows = [
        [titles[row], " to ".join(map(str, dict.fromkeys(found.interval(row)))), f"{found.first(row):.0%}"]
        for row in found.ranks
    ]
    notes = [
        f"Patients and seeds drawn 1,000 times, {found.n} cases of {found.patients} patients. Kendall's tau between "
        f"a resample's order and this one: {found.tau:.2f} on average, above {found.tau_low:.2f} in 95 % of them "
        "(1: the same order, 0: none of it left)."
    ]
    header = ["method, best first", "rank in 95 % of resamples", "comes first in"]
    return [Section(f"Order by mean Dice: {block.where}", header, rows, notes)]


def agreement(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """Predicted against reference volumes."""
    if not block.volumes:
        return []
    rows = []
    for one in block.volumes:
        found = one.agreement
        limits = interval(found.low, found.high, 0, signed=True)
        cells = [f"{found.bias:+.0f}", limits, f"{found.error:.0f}", number(found.icc, 2), str(found.n)]
        rows.append([titles[one.method], one.site, *cells])
    header = ["method", "site", "bias", "limits of agreement", "absolute error", "ICC(A,1)", "n"]
    notes = [
        "In ml: prediction minus reference, each case averaged over its runs. Limits: bias ± 1.96 sd (Bland and Altman "
        "1986). ICC(A,1): absolute agreement of single values (McGraw and Wong 1996)."
    ]
    return [Section(f"Volumes: {block.where}", header, rows, notes, key=block.place("agreement"))]


def calibration(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """Whether probabilities mean what they say."""
    if not block.calibrations:
        return []
    rows = [[titles[one.method], number(one.reliability.error), str(one.cases)] for one in block.calibrations]
    notes = [
        "Expected calibration error: by how much a predicted probability differs from the share of voxels that are of "
        "the structure, in 15 bins, near the structure, all runs together, over the few cases that runs keep it of."
    ]
    header = ["method", "calibration error", "cases"]
    title = f"Calibration: {block.where}"
    return [Section(title, header, rows, notes, key=block.place("calibration"))]


def strata(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """Dice of small and large lesions, and of each site."""
    if not block.strata:
        return []
    groups = dict.fromkeys(one.name for one in block.strata)
    cells: dict[str, dict[str, str]] = {}
    for one in block.strata:
        cells.setdefault(one.method, {})[one.name] = _stratum(one.summary, narrow)
    rows = [[titles[method], *(own[name] for name in groups)] for method, own in cells.items()]
    notes = [
        f"Mean Dice{'' if narrow else ' ± sd'} [cases]. Thirds of the cases by the reference's volume; those without "
        "a reference are in none."
    ]
    return [Section(f"By size and site: {block.where}", ["method", *groups], rows, notes)]


def worst(block: Block, titles: Titles, narrow: bool = False) -> list[Section]:
    """Each method's worst cases."""
    if not block.failures:
        return []
    rows = [
        [
            titles[one.method],
            one.case,
            number(one.dice),
            one.reason,
            f"{one.reference_ml:.0f}",
            f"{one.prediction_ml:.0f}",
        ]
        for one in block.failures
    ]
    header = ["method", "case", "Dice", "what is wrong", "reference, ml", "prediction, ml"]
    notes = [
        "Missed: nothing of the reference was found. False alarm: there is no reference. Too little found: sensitivity "
        "below 0.5. Too much marked: precision below 0.5."
    ]
    return [Section(f"Worst cases: {block.where}", header, rows, notes)]


def _stratum(summary: Summary | None, narrow: bool) -> str:
    if summary is None:
        return ABSENT
    return f"{number(summary.mean) if narrow else spread(summary)} [{summary.n}]"


PARTS: Mapping[str, Callable[[Block, Titles, bool], list[Section]]] = {
    "comparisons": comparisons,
    "ranking": ranking,
    "agreement": agreement,
    "strata": strata,
    "worst": worst,
    "calibration": calibration,
}


def _matrix(block: Block, titles: Titles) -> list[Section]:
    """Every two methods: the row's mean Dice minus the column's."""
    methods = list(dict.fromkeys(name for one in block.all_pairs for name in (one.baseline, one.row)))
    if len(methods) < 3:
        return []
    cells = {}
    for one in block.all_pairs:
        star = "*" if one.is_significant else ""
        cells[one.row, one.baseline] = f"{one.difference:+.3f}{star}"
        cells[one.baseline, one.row] = f"{-one.difference:+.3f}{star}"
    rows = [[titles[own], *(cells.get((own, other), "") for other in methods)] for own in methods]
    family = block.all_pairs[0].family
    notes = [f"Row minus column, mean Dice. * p ≤ 0.05 after Holm's correction over these {family} pairs."]
    if said := hopeless(block.all_pairs):
        notes.append(said)
    header = ["", *(titles[name] for name in methods)]
    return [Section(f"Every two methods: {block.where}", header, rows, notes)]


def hopeless(compared: Sequence[Comparison]) -> str:
    """Said where no result of these tests could have been significant."""
    if any(one.can_be_significant for one in compared):
        return ""
    patients, family = max(one.patients for one in compared), compared[0].family
    if all(one.p is None for one in compared):
        few = f"{patients} patient{'s' if patients != 1 else ''}"
        return f"No test with {few}: five are needed where rows have several seeds."
    smallest = min(one.smallest_p for one in compared if one.p is not None)
    return (
        f"No test can be significant with {patients} patients and {family} comparison{'s' if family != 1 else ''}: the "
        f"smallest possible p is {smallest:.2g}, {min(smallest * family, 1):.2g} when corrected."
    )
