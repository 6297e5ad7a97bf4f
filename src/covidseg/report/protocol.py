"""What a table's numbers were measured on, in words: a fixed test set, a whole cross-validation, some of its folds."""

from collections.abc import Mapping, Sequence
from typing import Any

from covidseg.report.collect import Run
from covidseg.runs.folder import last_attempt

Scored = Sequence[tuple[Run, Mapping[str, str]]]  # each run with its scored cases and their patients

_SETS = {"test": "fixed test set", "external": "external set", "validation": "validation set"}


def protocol(runs: Sequence[Run], set_name: str, structure: str) -> str:
    """The protocol of the finished `runs` that scored this structure on this set; "" where none did.

    From their manifests; runs of before these said so are described by what they scored.
    """
    scored = [(run, cases) for run in runs if (cases := _cases(run, set_name, structure))]
    alone = [(run, cases) for run, cases in scored if run.fold is None]
    folds = [(run, cases) for run, cases in scored if run.fold is not None]
    texts = [_fixed(alone, set_name)] if alone else []
    if folds:
        texts.append(_held_out(folds) if _holds_out(folds, set_name) else _shared(folds, set_name))
    if different := _resources([run for run, _ in scored]):
        texts.append(f"rows differ in effective batch or precision: {different}")
    return "; ".join(texts)


def _resources(runs: Sequence[Run]) -> str:
    """Which rows were trained with which effective batch and precision; "" where all were alike."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        last = last_attempt(run.manifest)
        if "effective_batch_size" in last and "precision" in last:
            rows.setdefault(f"batch {last['effective_batch_size']}, {last['precision']}", []).append(run.row)
    if len(rows) < 2:
        return ""
    return ", ".join(f"{made} ({' '.join(dict.fromkeys(names))})" for made, names in rows.items())


def _fixed(scored: Scored, set_name: str) -> str:
    facts, name, chosen = _facts(scored), _SETS[set_name], ""
    if set_name == "validation" and facts:
        name = f"declared {name}"
        chosen = (
            ", by which checkpoints were chosen, too" if any(fact.get("evaluate") == "best" for fact in facts) else ""
        )
    return f"{name} of {_patients(scored)}{chosen}"


def _shared(scored: Scored, set_name: str) -> str:
    """The folds' networks on one and the same set."""
    return f"{_SETS[set_name]} of {_patients(scored)}, scored by the networks of {_which(scored)}"


def _held_out(scored: Scored) -> str:
    facts = _facts(scored)
    count, numbers = _count(facts), _numbers(scored)
    whole = count is not None and numbers == list(range(count))
    text = f"{count}-fold cross-validation" if whole else f"a part of a cross-validation, {_which(scored)}"
    if files := sorted({fact["published"] for fact in facts if fact.get("published")}):
        text += f", published folds {', '.join(files)}"
    of_row: dict[tuple[str, str], set[object]] = {}
    for run, _ in scored:
        of_row.setdefault((run.row, run.task), set()).add(run.fold)
    uneven = any(own != set(numbers) for own in of_row.values())
    return text + ("; some rows lack folds, see column runs" if uneven else "")


def _holds_out(scored: Scored, set_name: str) -> bool:
    """Whether each fold was scored on cases of its own."""
    if set_name != "test":
        return False
    if facts := _facts(scored):
        return any(fact.get("held_out") for fact in facts)
    by_fold: dict[object, set[str]] = {}
    for run, cases in scored:
        by_fold.setdefault(run.fold, set()).update(cases)
    first, *others = by_fold.values()
    return not others or any(cases != first for cases in others)


def _which(scored: Scored) -> str:
    numbers, count = _numbers(scored), _count(_facts(scored))
    text = f"fold{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return f"{text} of {count}" if count is not None else f"{text} (of how many is not recorded)"


def _numbers(scored: Scored) -> list[Any]:
    return sorted({run.fold for run, _ in scored})


def _count(facts: Sequence[Mapping[str, Any]]) -> int | None:
    return max((fact["folds"] for fact in facts if isinstance(fact.get("folds"), int)), default=None)


def _facts(scored: Scored) -> list[Mapping[str, Any]]:
    """What the manifests say of the protocol."""
    return [fact for run, _ in scored if isinstance(fact := run.manifest.get("protocol"), Mapping)]


def _patients(scored: Scored) -> str:
    count = len({patient for _, cases in scored for patient in cases.values()})
    return f"{count} patient{'s' if count != 1 else ''}"


def _cases(run: Run, set_name: str, structure: str) -> dict[str, str]:
    """Case -> patient, of what the run scored there."""
    rows = (case for case in run.cases if case["set"] == set_name and case["structure"] == structure)
    return {case["case"]: case["patient"] for case in rows}
