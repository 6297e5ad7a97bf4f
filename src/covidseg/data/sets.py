"""Which cases of a data set are scored, under which name. A set is what somebody defined, not what was drawn at random.

A run keeps the division it was trained with. Other data have the sets that their owner declared (`cases.csv`,
nnU-Net's `imagesTs`, external sites, published folds) or the user asked for (`data.splits`, `fold`), or else one set
of all cases.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from covidseg.data.prepare.splits import HELD_OUT, SIDES
from covidseg.data.store import PreparedCase, PreparedDataset
from covidseg.system.errors import BadInput

ALL = "all"  # the set of data that nobody divided
Sets = dict[str, list[PreparedCase]]


def own_sets(dataset: PreparedDataset, fold: int | str | None, choosing: bool = False) -> Sets:
    """{set: cases} of the division a run was trained with (`PreparedDataset.split`), of the sets that have any."""
    split = dataset.split(fold, choosing)
    sides = {name: getattr(split, name) for name in SIDES}
    return {name: [dataset.cases[case] for case in cases] for name, cases in sides.items() if cases}


def defined_sets(dataset: PreparedDataset, fold: int | str | None, drawn: Collection[str] = ()) -> Sets:
    """{set: cases} of data that no run was divided by, of the sets that have any.

    The cases of the sides in `drawn` are in no set, and `train` holds them with all that are in none. Where there is no
    other set, there is one of all cases, `all`.
    """
    sets = own_sets(dataset, fold)
    undivided = [case for name in ("train", *drawn) for case in sets.pop(name, [])]
    if not sets:
        return {ALL: _sorted(undivided)}
    return {"train": _sorted(undivided), **sets} if undivided else sets


def choose(name: str, sets: Sets, wanted: str | Sequence[str] | None, structures: Collection[str], own: bool) -> Sets:
    """What is scored of `sets`: those `wanted` (a name, several, or "all"); None: test and external ones.

    Of data that are not the run's `own` each case is scored where there is neither. `name` is the data set's. Raises
    `BadInput` where there is no such set, or no case in it has one of the structures annotated.
    """
    if wanted is None and not own and not sets.keys() & set(HELD_OUT):
        chosen = {ALL: _sorted(case for cases in sets.values() for case in cases)}
    else:
        names = list(sets) if wanted == ALL else _names(wanted)
        chosen = {part: sets[part] for part in names if part in sets}
        if not chosen and ALL in sets:
            wrong = f"{name} has no {' or '.join(names)} set: nobody divided its {len(sets[ALL])} cases"
            raise BadInput("sets", wrong, "leave sets=... out to score all of them, or write the sets into cases.csv")
        if not chosen:
            wrong = f"{name} has no case in {', '.join(names)}, it has {_counts(sets)}"
            raise BadInput("sets", wrong, f"choose others: sets=[{','.join(sets)}]")
    if not any(annotated(chosen, structures).values()):
        wrong = f"nothing can be scored: no case in {', '.join(chosen)} has {' or '.join(structures)} annotated"
        raise BadInput(name, wrong, "choose other data, another run, or others with sets=...")
    return chosen


def remark(sets: Sets, chosen: Sets) -> str:
    """Which sets are left out, or that none is, in one line; empty where that goes without saying."""
    if ALL in chosen:
        return f"set {ALL}: these data have no test set of their own, so each case is scored"
    left_out = _counts({name: cases for name, cases in sets.items() if name not in chosen})
    return f"not scored: {left_out} (sets=all scores them, too)" if left_out else ""


def annotated(sets: Mapping[str, Sequence[PreparedCase]], structures: Collection[str]) -> Sets:
    """The cases of which any of the structures can be scored."""
    wanted = set(structures)
    return {part: [case for case in cases if wanted & set(case.annotated)] for part, cases in sets.items()}


def _names(wanted: str | Sequence[str] | None) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else list(HELD_OUT if wanted is None else wanted)
    if unknown := [name for name in names if name not in SIDES]:
        raise BadInput(f"sets={unknown[0]}", "there is no such set", f"{', '.join(SIDES)}, or {ALL}")
    return names


def _sorted(cases: Iterable[PreparedCase]) -> list[PreparedCase]:
    return sorted(cases, key=lambda case: case.id)


def _counts(sets: Mapping[str, Sequence[PreparedCase]]) -> str:
    return ", ".join(f"{len(cases)} in {part}" for part, cases in sets.items())
