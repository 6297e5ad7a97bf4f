"""What stands behind a mean: small lesions and large ones, the sites, volumes, and the cases that went worst."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from covidseg.evaluation.agreement import Volumes, volume_agreement
from covidseg.evaluation.calibration import FOLDER, Reliability
from covidseg.evaluation.statistics import Summary, case_means, summarise
from covidseg.report.collect import Run
from covidseg.system.errors import BadInput

ALL_SITES = "all"
WORST = 3
_LOW = 0.5  # a sensitivity or precision below this is what went wrong
Cases = Sequence[Mapping[str, Any]]  # lines of cases.csv, of one method, set and structure


@dataclass(frozen=True)
class Stratum:
    """The Dice of one method over a part of the cases; `summary` None where none of them has a score."""

    method: str
    name: str
    cases: int
    summary: Summary | None


@dataclass(frozen=True)
class Failure:
    """One of a method's worst cases, by its mean Dice over runs, and what is wrong with it in words."""

    method: str
    case: str
    dice: float
    reason: str
    reference_ml: float
    prediction_ml: float


@dataclass(frozen=True)
class Calibration:
    """What the probabilities of one method came to, over the `cases` that its runs kept them of."""

    method: str
    cases: int
    reliability: Reliability


def cases_of(runs: Sequence[Run], set_name: str, structure: str) -> list[Mapping[str, Any]]:
    """The lines of `runs` about one structure on one set."""
    return [case for run in runs for case in run.cases if case["set"] == set_name and case["structure"] == structure]


def strata(by_method: Mapping[str, Cases]) -> list[Stratum]:
    """Dice by thirds of the reference's volume, then by site where there are several."""
    by_method = {method: own for method, own in by_method.items() if own}
    lines = [case for own in by_method.values() for case in own]
    present = sorted(ml for ml in {case["case"]: case["reference_ml"] for case in lines}.values() if ml)
    sites = sorted({case["site"] for case in lines})
    found = []
    for name, (low, high) in _thirds(present).items():
        for method, own in by_method.items():
            found.append(_stratum(method, name, [case for case in own if low < (case["reference_ml"] or 0) <= high]))
    for site in sites if len(sites) > 1 else []:
        for method, own in by_method.items():
            found.append(_stratum(method, f"site {site or 'unnamed'}", [case for case in own if case["site"] == site]))
    return found


def volumes(by_method: Mapping[str, Cases]) -> list[Volumes]:
    """Agreement of volumes over all cases, then by site where there are several; a case's runs are averaged."""
    found = []
    for method, lines in by_method.items():
        own = [case for case in lines if None not in (case["prediction_ml"], case["reference_ml"])]
        if not own:
            continue
        found.append(_volumes(method, ALL_SITES, own))
        sites = sorted({case["site"] for case in own})
        for site in sites if len(sites) > 1 else []:
            found.append(_volumes(method, site or "unnamed", [case for case in own if case["site"] == site]))
    return found


def failures(by_method: Mapping[str, Cases], count: int = WORST) -> list[Failure]:
    """The `count` cases of lowest Dice of each method, the worst first."""
    found = []
    for method, own in by_method.items():
        grouped = [list(lines) for _, lines in groupby(sorted(own, key=_name), _name)]
        scored = [(mean, lines) for lines in grouped if (mean := _mean(lines, "dice")) is not None]
        for dice, lines in sorted(scored, key=lambda one: one[0])[:count]:
            reference, prediction = (_mean(lines, f"{part}_ml") or 0.0 for part in ("reference", "prediction"))
            found.append(Failure(method, lines[0]["case"], dice, _reason(lines), reference, prediction))
    return found


def calibrations(by_method: Mapping[str, Sequence[Run]], set_name: str, structure: str) -> list[Calibration]:
    """Of each method whose runs kept calibrations of cases of the set; one that cannot be read is left out."""
    found = []
    for method, runs in by_method.items():
        kept = [one for run in runs for one in _kept(run, set_name, structure)]
        if together := Reliability.together(reliability for _, reliability in kept):
            found.append(Calibration(method, len({case for case, _ in kept}), together))
    return found


def _kept(run: Run, set_name: str, structure: str) -> Iterator[tuple[str, Reliability]]:
    """By the files that are there: a case's name comes from a table, and is no path."""
    cases = {case["case"] for case in cases_of([run], set_name, structure)}
    for path in sorted((run.folder / FOLDER).glob(f"*_{structure}.json")):
        case = path.stem.removesuffix(f"_{structure}")
        if case in cases:
            with suppress(BadInput):
                yield case, Reliability.load(path)


def _reason(lines: Cases) -> str:
    """What is wrong with a case's masks, in how many of its runs where not in all."""
    said = [_reason_of_run(case) for case in lines]
    most = max(dict.fromkeys(said), key=said.count)
    return most if said.count(most) == len(said) else f"{most} ({said.count(most)} of {len(said)} runs)"


def _reason_of_run(case: Mapping[str, Any]) -> str:
    if not case["tp"] + case["fn"]:
        return "false alarm"
    if not case["tp"] + case["fp"]:
        return "missed"
    if not case["tp"]:
        return "missed, marked elsewhere"
    low = [name for name in ("sensitivity", "precision") if (case[name] or 0) < _LOW]
    words = {"sensitivity": "too little found", "precision": "too much marked"}
    return " and ".join(words[name] for name in low) or "borders differ"


def _thirds(volumes_ml: Sequence[float]) -> dict[str, tuple[float, float]]:
    """{name: (above, up to)} of three parts of equally many cases, from six on; equal volumes stay together."""
    if len(volumes_ml) < 2 * 3:
        return {}
    first, second = (float(np.quantile(volumes_ml, part, method="inverted_cdf")) for part in (1 / 3, 2 / 3))
    if not 0 < first < second < volumes_ml[-1]:
        return {}
    return {
        f"up to {first:.3g} ml": (0.0, first),
        f"{first:.3g} to {second:.3g} ml": (first, second),
        f"above {second:.3g} ml": (second, math.inf),
    }


def _stratum(method: str, name: str, own: Cases) -> Stratum:
    means = case_means((case["case"], case["dice"]) for case in own)
    patients = {case["case"]: case["patient"] for case in own}
    summary = summarise(list(means.values()), [patients[case] for case in means]) if means else None
    return Stratum(method, name, len(patients), summary)


def _volumes(method: str, site: str, own: Cases) -> Volumes:
    predicted = case_means((case["case"], case["prediction_ml"]) for case in own)
    reference = {case["case"]: case["reference_ml"] for case in own}
    pairs = [(ml, reference[case]) for case, ml in predicted.items()]
    first, second = (tuple(column) for column in zip(*pairs, strict=True))
    return Volumes(method, site, volume_agreement(first, second), first, second)


def _mean(lines: Cases, column: str) -> float | None:
    values = [case[column] for case in lines if case[column] is not None]
    return math.fsum(values) / len(values) if values else None


def _name(case: Mapping[str, Any]) -> str:
    return str(case["case"])
