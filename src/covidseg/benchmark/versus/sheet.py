"""What `versus` tells: the contenders beside each other, each patient's difference, who has not converged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from covidseg.evaluation.comparison import Comparison, RowScores, compare
from covidseg.evaluation.metrics import METRICS

CONTENDERS = {  # name -> (title, module, package it needs)
    "ours": ("covidseg, its recipe", "ours", "covidseg"),
    "nnunet": ("nnU-Net as it plans", "nnunet", "nnunetv2"),
    "nnunet_ours": ("nnU-Net, our voxels, patch and compute", "nnunet", "nnunetv2"),
    "dynunet": ("MONAI's DynUNet, plain loop", "dynunet", "monai"),
}
SHOWN = ("dice", "nsd", "lesion_f1")
STILL_FALLING = 0.05  # share of the loss's whole fall that fell to its last fifth


@dataclass(frozen=True)
class Line:
    """A contender over the folds that are done."""

    contender: str
    facts: Sequence[dict[str, Any]]  # one for each fold
    rows: Sequence[dict[str, str]]  # of cases.csv, of all folds
    curves: Sequence[Sequence[tuple[float, float]]] = ()  # (seconds, loss), one for each fold
    absent: str = ""

    @property
    def title(self) -> str:
        return CONTENDERS[self.contender][0]

    def mean(self, fact: str) -> float:
        return mean(float(facts[fact]) for facts in self.facts)

    def by_case(self, metric: str) -> dict[str, float]:
        """Of the cases where it is defined."""
        return {row["case"]: float(row[metric]) for row in self.rows if row[metric]}

    @property
    def converged(self) -> bool:
        return all(facts["falling"] is not None and facts["falling"] < STILL_FALLING for facts in self.facts)


def markdown(lines: Sequence[Line], told: str) -> str:
    """The contenders beside each other, below `told`, which is of all; of one that still learns nothing is told."""
    titles = {metric.name: metric.heading for metric in METRICS}
    head = ["contender", *(titles[name] for name in SHOWN), "n", "patches/s", "GB", "s a scan", "loss at the end"]
    text = [
        told,
        "",
        f"| {' | '.join(head)} |",
        "|---|" + "--:|" * (len(head) - 2) + "---|",
    ]
    text += [f"| {' | '.join(_cells(line))} |" for line in lines]
    text += ["", *(f"- {line.title}: {line.facts[0]['what']}." for line in lines if line.facts)]
    compared = [_difference(one) for one in differences(lines)]
    if compared:
        text += ["", "Dice of covidseg minus that of the other, patient by patient:", "", *compared]
    rising = [line.title for line in lines if line.facts and not line.converged]
    if rising:
        text += ["", f"Not converged: {'; '.join(rising)}. Nothing is concluded from how they stand."]
    return "\n".join(text)


def differences(lines: Sequence[Line]) -> Iterator[Comparison]:
    """Ours minus each other contender in Dice, on the cases that both were scored on."""
    ours = next((line for line in lines if line.contender == "ours" and line.rows), None)
    others = [line for line in lines if line.contender != "ours" and line.rows]
    if ours is None:
        return
    patients = {row["case"]: row["patient"] or row["case"] for row in ours.rows}
    for line in others:
        first, second = (RowScores({0: one.by_case("dice")}) for one in (ours, line))
        compared = compare(ours.title, line.title, first, second, patients)
        if compared is not None:
            yield compared


def to_plain(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """For versus.json."""
    kept = ("set", "case", "patient", "structure", *SHOWN)
    return [
        {
            "contender": line.contender,
            "title": line.title,
            "absent": line.absent,
            "converged": bool(line.facts) and line.converged,
            "folds": list(line.facts),
            "cases": [{key: row[key] for key in kept if key in row} for row in line.rows],
        }
        for line in lines
    ]


def from_plain(lines: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines that `to_plain` made, without their curves."""
    return [Line(one["contender"], one["folds"], one["cases"], absent=one["absent"]) for one in lines]


def _difference(one: Comparison) -> str:
    bounds = "no interval" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}"
    return (
        f"- {one.baseline}: {one.difference:+.3f} ({bounds}), better in {one.superiority:.0%} of {one.n}, "
        f"p {one.p_text} (not below {one.smallest_p:.3f} with {one.patients} patients), not corrected."
    )


def _cells(line: Line) -> list[str]:
    if line.absent or not line.rows:
        return [line.title, line.absent or "not done yet", *[""] * (len(SHOWN) + 4)]
    scores = [line.by_case(name).values() for name in SHOWN]
    tests = len(line.rows)
    scans = tests / len(line.facts)
    return [
        line.title,
        *(f"{mean(values):.3f}" if values else "-" for values in scores),
        str(tests),
        f"{line.mean('patches') / line.mean('seconds'):.2f}",
        f"{max(facts['peak_bytes'] for facts in line.facts) / 1e9:.1f}",
        f"{line.mean('predicting') / scans:.1f}",
        "level" if line.converged else "still falling: not converged",
    ]
