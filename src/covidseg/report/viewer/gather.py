"""Which cases of a table the page shows, and their scans and masks: from the runs, and the data they were made on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covidseg.config.plain import as_dict
from covidseg.data.store import PreparedCase, PreparedDataset
from covidseg.evaluation.structures import Task
from covidseg.report.analysis import cases_of
from covidseg.report.collect import Run, TableResults
from covidseg.report.table import Block, method_runs, scores
from covidseg.report.viewer.volume import REFERENCE, Shown, thinned, thinned_spacing
from covidseg.runs import predictions
from covidseg.runs.training_data import training_data
from covidseg.system.errors import BadInput, CovidSegError

IN_PAGE = 12  # cases; the others lie beside it
WHY = ("median", "best", "worst", "smallest reference", "largest disagreement")


@dataclass(frozen=True)
class Choice:
    """A case, and why it is shown."""

    case: str
    set: str
    why: str = ""

    @property
    def label(self) -> str:
        return f"{self.case}, {self.set} set" + (f": {self.why}" if self.why else "")


def chosen(results: TableResults, blocks: Sequence[Block]) -> list[Choice]:
    """Every case that has a score, those that say most first: see `WHY`; what is chosen twice says both."""
    runs = method_runs(results)
    reasons: dict[tuple[str, str], list[str]] = {}
    everything: dict[tuple[str, str], None] = {}
    for block in blocks:
        found = _dice(block, runs)
        everything |= {(block.set, case): None for case in found}
        for why, case in _telling(found, _volumes(block, runs)):
            reasons.setdefault((block.set, case), []).append(f"{why} ({block.structure})")
    order = [*reasons, *(key for key in everything if key not in reasons)]
    return [Choice(case, name, ", ".join(reasons.get((name, case), ()))) for name, case in order]


def gather(results: TableResults, home: Path | str, choices: Sequence[Choice]) -> Iterator[Shown]:
    """Scan, reference and each method's masks of the cases that can be shown, in the given order.

    Of a method, the first run that kept the case. `home`: where prepared data lie. A case whose scan is not there, or
    that no run kept, is left out.
    """
    runs = method_runs(results)
    data = _data_sets(results, home)
    for choice in choices:
        case = next((one.cases[choice.case] for one in data if choice.case in one.cases), None)
        if case is None:
            continue
        with suppress(BadInput, OSError):  # a damaged case costs its picture and not the report
            shown = _shown(choice, case, runs)
            if any(len(named) > 1 for named in shown.masks.values()):
                yield shown


def _shown(choice: Choice, case: PreparedCase, runs: Mapping[str, Sequence[Run]]) -> Shown:
    spacing = case.grid.spacing_zyx
    masks: dict[str, dict[str, np.ndarray]] = {}
    dice: dict[str, dict[str, float]] = {}
    for method, own in runs.items():
        for run in own:
            if all(method in masks.get(structure, ()) for structure in run.structures):
                continue  # an earlier seed kept the case
            for structure, mask in _kept(run, choice, case).items():
                masks.setdefault(structure, {})[method] = thinned(mask, spacing)
                score = scores([run], choice.set, structure, "dice").get(choice.case)
                if score is not None:
                    dice.setdefault(structure, {})[method] = score
    labels = thinned(case.mask, spacing)
    for structure in masks:
        task = _task_of(runs, structure)
        if task is not None and structure in case.annotated:
            masks[structure] = {REFERENCE: task.structures[structure].in_reference(labels), **masks[structure]}
    lung = labels > 0 if "lung" in case.annotated else None
    image = thinned(case.image, spacing)
    return Shown(choice.case, choice.set, choice.label, image, thinned_spacing(spacing), masks, dice, lung)


def _kept(run: Run, choice: Choice, case: PreparedCase) -> dict[str, np.ndarray]:
    """By the table's lines: a case's name comes from a prepared data set, whose ids are plain names."""
    if not any(line["case"] == choice.case and line["set"] == choice.set for line in run.cases):
        return {}
    path = run.folder / predictions.FOLDER / f"{case.id}.npz"
    if not path.is_file():
        return {}
    with suppress(BadInput):
        found = predictions.load(path)
        return {name: mask for name, mask in found.items() if mask.shape == case.grid.shape_zyx}
    return {}


def _data_sets(results: TableResults, home: Path | str) -> list[PreparedDataset]:
    """Those that the runs were made on and that are here, each once."""
    found: dict[str, PreparedDataset] = {}
    asked = set()
    for run in results.finished:
        data = run.manifest.get("data") or {}
        if run.config is None or data.get("hash") in asked:
            continue
        asked.add(data.get("hash"))
        with suppress(CovidSegError, KeyError, TypeError):  # a run's configuration may be anything
            one = training_data(run.folder, as_dict(run.config), home)
            if one is not None:
                found[one.hash] = one
    return list(found.values())


def _task_of(runs: Mapping[str, Sequence[Run]], structure: str) -> Task | None:
    for config in (run.config for own in runs.values() for run in own):
        with suppress(CovidSegError, KeyError, TypeError, ValueError):
            task = Task.from_config(as_dict(config)["task"]) if config is not None else None
            if task is not None and structure in task.structures:
                return task
    return None


def _dice(block: Block, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Case -> Dice of each method that has one."""
    found: dict[str, list[float]] = {}
    for own in runs.values():
        for case, value in scores(own, block.set, block.structure, "dice").items():
            found.setdefault(case, []).append(value)
    return found


def _volumes(block: Block, runs: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """Case -> ml of its reference, where there is one."""
    together = [run for own in runs.values() for run in own]
    lines = cases_of(together, block.set, block.structure)
    return {line["case"]: line["reference_ml"] for line in lines if line["reference_ml"]}


def _telling(dice: Mapping[str, Sequence[float]], volumes: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(why, case)."""
    if not dice:
        return
    means = {case: float(np.mean(values)) for case, values in dice.items()}
    ranked = sorted(means, key=lambda case: (-means[case], case))
    smallest = min((case for case in volumes if case in dice), key=lambda case: volumes[case], default=ranked[0])
    apart = max(dice, key=lambda case: float(np.ptp(dice[case])))
    yield from zip(WHY, (ranked[len(ranked) // 2], ranked[0], ranked[-1], smallest, apart), strict=True)
