"""What a run is scored on: the fixed division's test set, a fold's, or nothing; where it is nothing, no run begins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from covidseg.data.datasets import Source
from covidseg.data.prepare.splits import ALL, HELD_OUT, SIDES
from covidseg.data.store import PreparedDataset
from covidseg.system.errors import BadInput


@dataclass(frozen=True)
class Division:
    """How a data set is divided and what is annotated in which case, from its prepared folder or from its file names.

    From file names alone it is not always known who is on a side that is drawn: lesions decide there, too, and they
    are only known once they were read. What is refused then would be refused afterwards as well.
    """

    name: str
    splits: Mapping[str, Any]
    annotated: Mapping[str, Sequence[str]]
    drawable: int | None = None  # patients whose side nobody declared; None: not known any more
    certain: bool = True  # who is on which side

    @classmethod
    def of_prepared(cls, dataset: PreparedDataset) -> Self:
        """That of a prepared folder."""
        return cls(dataset.folder.name, dataset.splits, {case.id: case.annotated for case in dataset.cases.values()})

    @classmethod
    def of_sources(cls, name: str, cases: Sequence[Source], splits: Mapping[str, Any]) -> Self:
        """That of a data set of which no voxel was read yet; `splits` as `make_splits` divides its cases."""
        external = set(splits["fixed"]["external"])
        open_to_draw = [case for case in cases if not case.declared and case.id not in external]
        annotated = {case.id: case.annotated for case in cases}
        certain = len(set(annotated.values())) < 2
        if not splits["published"] and not certain:  # whoever is drawn may be one of those that have a mask
            union = tuple({part for case in open_to_draw for part in case.annotated})
            annotated |= {case.id: union for case in open_to_draw}
        return cls(name, splits, annotated, len({case.patient or case.id for case in open_to_draw}), certain)

    def scored(self, fold: int | str | None, structures: Iterable[str]) -> tuple[str, ...]:
        """The sets on which a run is scored: test and external ones; without either the validation set, if declared.

        A set counts if one of its cases has one of the structures annotated. Of a fold, the validation set is drawn.
        """
        if fold == ALL:
            return ()
        sides = self.splits["fixed"] if fold is None else self.splits["folds"][fold]
        wanted = set(structures)
        there = [side for side in SIDES if any(wanted & set(self.annotated[case]) for case in sides[side])]
        if tested := tuple(side for side in there if side in HELD_OUT):
            return tested
        declared = fold is None and "validation" not in self.splits.get("drawn", ())
        return ("validation",) if declared and "validation" in there else ()

    def folds(self, structures: Iterable[str]) -> list[int]:
        """The folds that have something to train on and something to be scored on."""
        wanted = set(structures)
        return [
            fold
            for fold, sides in enumerate(self.splits["folds"])
            if self.scored(fold, wanted) and any(wanted <= set(self.annotated[case]) for case in sides["train"])
        ]

    def require(self, fold: int | str | None, structures: Iterable[str]) -> None:
        """Raise `BadInput` for a run that could not be trained, or not be scored without having asked for that."""
        wanted = sorted(structures)
        if not any(set(wanted) <= set(parts) for parts in self.annotated.values()):
            wrong = f"no case has {' and '.join(wanted)} annotated"
            raise BadInput(self.name, wrong, other_task(self.annotated.values()))
        count = len(self.splits["folds"])
        if isinstance(fold, int) and not 0 <= fold < count:
            raise BadInput(f"fold={fold}", f"{self.name} has {count} folds, counted from 0", self.remedy(wanted))
        unsure = fold is None and not self.certain and "test" in self.splits["drawn"]
        if fold == ALL or unsure or self.scored(fold, wanted):
            return
        sides = self.splits["fixed"] if fold is None else self.splits["folds"][fold]
        lacks = f"no {' or '.join(wanted)} annotated in its test set" if sides["test"] + sides["external"] else None
        what = self.name if fold is None else f"{self.name}, fold={fold}"
        raise BadInput(what, f"has {lacks or 'no test set'}, so a run could not be scored", self.remedy(wanted))

    def protocol(
        self, fold: int | str | None, structures: Iterable[str], scored: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """How a run is scored, for its manifest: what the report says of it. `scored`: other sets than usual."""
        wanted = set(structures)
        scored = self.scored(fold, wanted) if scored is None else scored
        fixed = self.splits["fixed"]
        sides = self.splits["folds"][fold] if isinstance(fold, int) else fixed
        return {
            "fold": fold,
            "folds": len(self.splits["folds"]),
            "published": self.splits.get("published"),
            "held_out": isinstance(fold, int) and sides["test"] != fixed["test"],  # its test set is the fold's own
            "sets": {side: sum(1 for case in sides[side] if wanted & set(self.annotated[case])) for side in scored},
        }

    def needed(self, structures: Sequence[str]) -> list[int] | None:
        """The folds that give every case a score; None where a run of no fold is scored. Raises as `require` does."""
        folds = self.folds(structures)
        try:
            self.require(None, structures)
        except BadInput:
            if not folds:
                raise
            return folds
        return None

    def remedy(self, structures: Iterable[str]) -> str:
        """What makes a run of these structures one that is scored, or one that asks for no score."""
        if folds := self.folds(structures):
            return f"cross-validate with {listed(folds)}, or train on everything with fold={ALL}"
        if self.drawable is None or not self.certain:
            return f"train on everything with fold={ALL}, or prepare it with a test set or folds (data.splits)"
        if self.drawable < 2:
            return f"train on everything with fold={ALL}, or add patients"
        several = f"data.splits.folds={min(5, self.drawable)} and fold=0"
        return f"data.splits.test_fraction=0.2 makes a test set, {several} a fold; fold={ALL} trains on everything"


def other_task(annotated: Iterable[Iterable[str]]) -> str:
    """The remedy where no case has all that a task segments; `annotated`: the structures of each case."""
    there = sorted({name for names in annotated for name in names})
    return " or ".join([*(f"task={name}" for name in there), "add masks"])


def listed(folds: Sequence[int]) -> str:
    """`fold=0, fold=1`; of a longer row the first and the last."""
    names = [f"fold={fold}" for fold in folds]
    in_a_row = list(folds) == list(range(folds[0], folds[-1] + 1))
    return f"{names[0]} ... {names[-1]}" if in_a_row and len(names) > 2 else ", ".join(names)
