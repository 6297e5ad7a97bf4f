"""Which case is for training, validation, test: by patient, seeded, never one patient on two sides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.system.errors import BadInput
from covidseg.system.files import read_json

SIDES = ("train", "validation", "test", "external")  # also the names of the sets that are scored
HELD_OUT = ("test", "external")  # what is scored unless others are asked for
RULES = 2  # how a data set is divided; part of what names a prepared folder, so that no division is read stale
ALL = "all"  # `fold=all`: train on every case


@dataclass(frozen=True)
class Member:
    """What a split needs to know of a case. `declared` is the side its owner wants it on, or ""."""

    id: str
    patient: str
    site: str = ""
    declared: str = ""
    stratum: str = ""  # patients of one stratum (with lesions, without) are spread evenly over the sides


def make_splits(
    members: Sequence[Member],
    *,
    seed: int,
    test_fraction: float,
    validation_fraction: float,
    folds: int,
    external_sites: Sequence[str] = (),
    published: Sequence[Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Divide cases by patient: {"fixed": sides, "drawn": [side, ...], "folds": [sides, ...], "choosing": [ids, ...],
    "notes": [...]}, sides as in `store.Split`.

    External sites are kept apart first, then the test set: the declared one, or else a share of the patients; who
    declares training and validation cases and no test case wants none. `drawn` names the sides of the fixed division
    that nobody declared. With a test set, the held-out part of a fold is its validation set; without one, it is its
    test set, and validation patients are drawn from the rest.

    `published` are folds made by others, [{"train": ids, "test": ids}, ...], taken instead of `folds`; a training case
    whose patient is in the fold's test set is left out of it. `choosing` names, for each of them, some of its training
    cases: what a run that chooses its checkpoint holds out. All others train on the whole published part.

    Raises `BadInput` where a patient stands on two sides, a published fold names a case that is not there, or there are
    too few patients.
    """
    known = {member.id: member for member in members}
    if len(known) != len(members):
        raise BadInput("splits", "a case id occurs twice", "give each case its own name")
    side = {member.id: _declared_side(member, external_sites) for member in members}
    draw = np.random.default_rng(seed)
    drawn: list[str] = []
    notes: list[str] = []

    if test_fraction and "test" not in side.values() and not {"train", "validation"} <= set(side.values()):
        _move(side, members, "", "test", _share(members, side, test_fraction, draw))
        drawn.append("test")
    fold_sides = dict(side)
    if validation_fraction and "validation" not in side.values():
        if len({member.patient for member in members if not side[member.id]}) > 1:
            _move(side, members, "", "validation", _share(members, side, validation_fraction, draw))
            drawn.append("validation")
        else:
            notes.append("no validation set: there are not two patients to draw it from")
    choosing: list[list[str]] = []
    if published is not None:
        divided = [_published_fold(fold, k, known, notes) for k, fold in enumerate(published)]
        for k, sides in enumerate(divided):
            choosing.append(_for_choosing(sides, known, validation_fraction, np.random.default_rng([seed, k])))
    else:
        patients = len({member.patient for member in members if fold_sides[member.id] in ("", "validation")})
        if patients < folds:
            notes.append(f"no folds: {patients} patients are too few for {folds}")
            folds = 0
        divided = _folds(members, fold_sides, folds, validation_fraction, draw)
    fixed = _sides(side)
    for name, sides in [("the split", fixed), *((f"fold {k}", sides) for k, sides in enumerate(divided))]:
        check_patients(sides, {member.id: member.patient for member in members}, name)
    return {"fixed": fixed, "drawn": drawn, "folds": divided, "choosing": choosing, "notes": notes}


def chooses(training: Mapping[str, Any]) -> bool:
    """Whether a run chooses anything by its validation cases: a checkpoint, or settings over many runs.

    `training`: the section of its configuration; earlier ones have no `score_on`.
    """
    return training["evaluate"] == "best" or training.get("score_on") == "validation"


def published_folds(file: str | None) -> list[dict[str, list[str]]] | None:
    """The folds of a JSON file {"folds": [{"train": ids, "test": ids}, ...]}: yours, or one that comes along."""
    if file is None:
        return None
    path = Path(file).expanduser()
    path = path if path.is_file() else Path(__file__).parents[1] / "datasets" / path.name
    try:
        folds = [{side: list(map(str, fold[side])) for side in ("train", "test")} for fold in read_json(path)["folds"]]
    except FileNotFoundError:
        raise BadInput(f"data.splits.published={path.name}", "there is no such file", "correct the path") from None
    except (ValueError, KeyError, TypeError) as error:
        wrong = f"is not a list of folds ({type(error).__name__}: {error})"
        raise BadInput(path.name, wrong, 'write {"folds": [{"train": [...], "test": [...]}, ...]}') from error
    if not folds:
        raise BadInput(path.name, "lists no fold", "data.splits.published=null makes folds of its own")
    return folds


def check_patients(sides: Mapping[str, Iterable[str]], patient_of: Mapping[str, str], name: str) -> None:
    """Raise `BadInput` naming the patients that stand on more than one side, or cases that do not exist."""
    seen: dict[str, str] = {}
    for side, cases in sides.items():
        for case in cases:
            if case not in patient_of:
                raise BadInput(name, f"{side} names {case}, and there is no such case", "correct the list")
            patient = patient_of[case]
            if seen.setdefault(patient, side) != side:
                wrong = f"patient {patient} is in {seen[patient]} and in {side} (case {case})"
                raise BadInput(name, wrong, "put all scans of a patient on one side")


def check_declared(members: Sequence[Member], external_sites: Sequence[str]) -> None:
    """Raise `BadInput` for a side that does not exist, or a patient whose owner put him on two."""
    sides: dict[str, list[str]] = {}
    for member in members:
        if side := _declared_side(member, external_sites):
            sides.setdefault(side, []).append(member.id)
    check_patients(sides, {member.id: member.patient for member in members}, "the split")


def _declared_side(member: Member, external_sites: Sequence[str]) -> str:
    if member.declared not in ("", *SIDES):
        wrong = f"split {member.declared!r} is none of {', '.join(SIDES)}"
        near = member.declared.lower()
        raise BadInput(
            f"case {member.id}", wrong, f"write {near} in cases.csv" if near in SIDES else "correct cases.csv"
        )
    return "external" if member.site and member.site in external_sites else member.declared


def _patients(members: Sequence[Member], side: Mapping[str, str], draw: np.random.Generator) -> list[str]:
    """Patients without a side yet, in random order, those of one stratum next to each other."""
    stratum: dict[str, str] = {}
    for member in members:
        if not side[member.id]:
            stratum[member.patient] = max(stratum.get(member.patient, ""), member.stratum)
    names = sorted(stratum)
    shuffled = [names[i] for i in draw.permutation(len(names))]
    return sorted(shuffled, key=stratum.__getitem__)


def _share(members: Sequence[Member], side: Mapping[str, str], share: float, draw: np.random.Generator) -> set[str]:
    """A share of the free patients, at least one, evenly from all strata; at least one stays."""
    free = _patients(members, side, draw)
    count = max(1, round(share * len(free)))
    if count >= len(free):
        wrong = f"{len(free)} patients cannot give {count} away and keep one for training"
        raise BadInput("data.splits", wrong, "lower data.splits.test_fraction or validation_fraction (0 for none)")
    return _evenly(free, count)


def _evenly(patients: Sequence[str], count: int) -> set[str]:
    """`count` of them at equal distances, so that each stratum gives its share."""
    return {patients[int((i + 0.5) * len(patients) / count)] for i in range(count)}


def _move(side: dict[str, str], members: Sequence[Member], old: str, new: str, patients: set[str]) -> None:
    for member in members:
        if side[member.id] == old and member.patient in patients:
            side[member.id] = new


def _folds(
    members: Sequence[Member],
    side: Mapping[str, str],
    count: int,
    validation_fraction: float,
    draw: np.random.Generator,
) -> list[dict[str, list[str]]]:
    movable = {case: "" if of == "validation" else of for case, of in side.items()}  # folds make their own validation
    order = _patients(members, movable, draw)
    held_out = "validation" if "test" in movable.values() else "test"
    divided = []
    for k in range(count):
        of_fold = dict(movable)
        _move(of_fold, members, "", held_out, set(order[k::count]))
        left = len({member.patient for member in members if not of_fold[member.id]})
        if held_out == "test" and validation_fraction and left > 1:
            _move(of_fold, members, "", "validation", _share(members, of_fold, validation_fraction, draw))
        divided.append(_sides(of_fold))
    return divided


def _published_fold(
    fold: Mapping[str, Sequence[str]], k: int, known: Mapping[str, Member], notes: list[str]
) -> dict[str, list[str]]:
    absent = sorted({*fold["train"], *fold["test"]} - known.keys())
    if absent:
        wrong = f"names cases that are not there: {', '.join(absent)}"
        remedy = "complete the data set, or make folds of its own with data.splits.published=null"
        raise BadInput(f"fold {k}", wrong, remedy)
    tested = {known[case].patient for case in fold["test"]}
    leaking = sorted(case for case in fold["train"] if known[case].patient in tested)
    if leaking:
        notes.append(f"fold {k}: {', '.join(leaking)} left out of training, the patient is in the test set")
    side = {case: "test" for case in fold["test"]} | {case: "" for case in fold["train"] if case not in leaking}
    return _sides(side)


def _for_choosing(
    sides: Mapping[str, Sequence[str]], known: Mapping[str, Member], share: float, draw: np.random.Generator
) -> list[str]:
    """Training cases of some patients, at least one and never all; none where a single patient is trained on."""
    training = [known[case] for case in sides["train"]]
    patients = _patients(training, dict.fromkeys(sides["train"], ""), draw)
    if len(patients) < 2:
        return []
    chosen = _evenly(patients, min(max(1, round(share * len(patients))), len(patients) - 1))
    return sorted(member.id for member in training if member.patient in chosen)


def _sides(side: Mapping[str, str]) -> dict[str, list[str]]:
    """Case -> side turned round; what has no side is for training."""
    return {name: sorted(case for case, of in side.items() if (of or "train") == name) for name in SIDES}
