"""Scores of a network, or of masks somebody made, over the cases of a data set: each case exactly once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from covidseg.data.datasets import case_id, is_mask_name, scan_name
from covidseg.data.store import PreparedCase, PreparedDataset
from covidseg.evaluation.metrics import METRICS, case_metrics
from covidseg.evaluation.results import COLUMNS
from covidseg.evaluation.scores import CaseScores
from covidseg.evaluation.structures import NAMES, Task
from covidseg.scans.gate.names import is_litter, shown
from covidseg.system.errors import BadInput, CovidSegError

_AHEAD = 2  # cases that are scored while the next one is segmented; each holds a class map and a reference


def case_scores(
    classes: np.ndarray,
    reference: np.ndarray,
    spacing_zyx: Sequence[float],
    task: Task,
    annotated: Iterable[str],
    slow: bool = True,
) -> dict[str, dict[str, Any]]:
    """`case_metrics` of each structure of the task that is annotated in this case.

    `classes`: the network's class map, `reference`: the stored label map, both uint8 (z, y, x) on the scan's own grid.
    """
    annotated = set(annotated)
    return {
        name: case_metrics(
            part.in_prediction(classes), part.in_reference(reference), spacing_zyx, part.tolerance_mm, slow
        )
        for name, part in task.structures.items()
        if name in annotated
    }


def evaluate_cases(
    segment: Callable[[PreparedCase], np.ndarray],
    sets: Mapping[str, Sequence[PreparedCase]],
    task: Task,
    progress: Callable[[str], None] | None = None,
    slow: bool = True,
    scores: CaseScores | None = None,
) -> list[dict[str, Any]]:
    """Rows of `cases.csv` for every case of every set that has a structure of the task annotated.

    `segment(case)` gives the class map on the scan's own grid. Under `torch.distributed` call it on every rank: the
    cases are divided without padding, and every rank returns all rows, which `scores` brings together, on a device that
    the process group can send from. `progress` gets each case's id when it is done. `slow=False` leaves out the
    metrics that take seconds a case. A failure on one rank is raised on all of them.

    A case is scored in a thread while the next one is segmented; at most `_AHEAD` class maps wait beside that one.
    """
    wanted = [
        (name, case) for name, cases in sets.items() for case in cases if set(case.annotated) & set(task.structures)
    ]
    if not wanted:  # on all ranks alike
        return []
    scores = CaseScores() if scores is None else scores
    scores.expect(
        _identity(case, name, part)
        for name, case in wanted
        for part in sorted(task.structures.keys() & set(case.annotated))
    )
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    failure: Exception | None = None
    try:
        for name, case, found in _scored(segment, wanted[rank::ranks], task, slow):
            for structure, values in found.items():
                scores.update(name, case.id, structure, values)
            if progress:
                progress(case.id)
    except Exception as error:
        failure = error
    failed_elsewhere = _first_failure(failure)  # before any score is sent: whoever failed waits for none
    if failure:
        raise failure
    if failed_elsewhere:
        raise CovidSegError("evaluation", f"failed on another process: {failed_elsewhere}")
    return [_row(values) for values in scores.collect()]


def _scored(
    segment: Callable[[PreparedCase], np.ndarray], wanted: Sequence[tuple[str, PreparedCase]], task: Task, slow: bool
) -> Iterator[tuple[str, PreparedCase, dict[str, dict[str, Any]]]]:
    """(set, case, its scores) in the given order."""

    def score(case: PreparedCase, classes: np.ndarray) -> dict[str, dict[str, Any]]:
        return case_scores(classes, case.reference(), case.grid.native.spacing_zyx, task, case.annotated, slow)

    waiting: deque[tuple[str, PreparedCase, Future[dict[str, dict[str, Any]]]]] = deque()
    with ThreadPoolExecutor(_AHEAD, "scores") as pool:
        try:
            for name, case in wanted:
                waiting.append((name, case, pool.submit(score, case, segment(case))))
                while len(waiting) > _AHEAD or (waiting and waiting[0][2].done()):
                    name, case, future = waiting.popleft()
                    yield name, case, future.result()
            for name, case, future in waiting:
                yield name, case, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def evaluate_masks(
    folder: Path | str,
    sets: Mapping[str, Sequence[PreparedCase]],
    task: Task,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """As `evaluate_cases`, for the binary masks in a folder, whoever made them; one structure after the other.

    A mask is called `<case>_<structure>` or, where the task has one structure, `<case>`. Instead of the case's id it
    may bear the name of its scan, as `predict` writes it (`my scan 1_lesion.nii.gz`). Raises `BadInput` for a case
    without a mask, for a mask of no case, and for one that does not lie on the scan's grid.
    """
    from covidseg.scans.read import read_mask

    files = _find_masks(Path(folder), [case for cases in sets.values() for case in cases], task)
    rows = []
    for name in task.structures:

        def segment(case: PreparedCase, name: str = name) -> np.ndarray:
            return read_mask(files[case.id, name], case.grid.native)[0]

        rows += evaluate_cases(segment, sets, task.alone(name), progress)
    return rows


def _find_masks(folder: Path, cases: Sequence[PreparedCase], task: Task) -> dict[tuple[str, str], Path]:
    """File of each (case id, structure) that is to be scored."""
    found = _mask_files(folder)
    named: dict[str, list[Path]] = {}
    for stem, path in found.items():
        for name in _names(stem):
            named.setdefault(name, []).append(path)
    files, missing = {}, []
    for case in cases:
        for structure in task.structures:
            names = (f"{case.id}_{structure}", *([case.id] if len(task.structures) == 1 else []))
            there = [path for wanted in names for path in named.get(wanted, ())]
            if len(there) > 1:
                raise BadInput(shown(there[0]), f"and {shown(there[1])} are both for case {case.id}", "keep one")
            if there:
                files[case.id, structure] = there[0]
            elif structure in case.annotated:
                missing.append(names[0])
    if missing:
        wrong = f"{len(missing)} masks are missing: {_some(missing)}"
        raise BadInput("predictions", wrong, "a case without a mask has no score")
    known = {f"{case.id}_{name}" for case in cases for name in NAMES}
    used = set(files.values())
    if extra := [path for stem, path in found.items() if path not in used and not known & _names(stem)]:
        wrong = f"{len(extra)} masks belong to no case: {_some(map(shown, extra))}"
        raise BadInput("predictions", wrong, "remove them, or use sets=all")
    return files


def _mask_files(folder: Path) -> dict[str, Path]:
    """The masks in a folder by their names without suffix."""
    if not folder.is_dir():
        raise BadInput(f"predictions={shown(folder)}", "is no folder", "give the folder that holds the masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_mask_name(path) and not is_litter(path.name):
            name = scan_name(path)
            if twin := found.get(name):
                raise BadInput(shown(path), f"is a second {shown(twin)}", "keep one of the two")
            found[name] = path
    return found


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _names(stem: str) -> set[str]:
    """What a mask may be called for: its own name, and that of the case that a scan of this name became."""
    scan, _, structure = stem.rpartition("_")
    return {stem, case_id(stem), *([f"{case_id(scan)}_{structure}"] if scan and structure in NAMES else [])}


def seen_in_training(
    sets: Mapping[str, Sequence[PreparedCase]],
    scored: PreparedDataset,
    training: PreparedDataset,
    fold: int | str | None,
    choosing: bool = False,
) -> dict[str, list[str]]:
    """{"train": ids, "validation": ids} of the cases a run has learned from, or was chosen by, and yet is scored on.

    `training`, `fold`, `choosing`: what the run was trained on, as for `PreparedDataset.split`. A scan is known again
    by the content of its file, or by its voxels once they are prepared, whatever it is called; within one data set a
    patient's other scans count, too. A case of the set it was in then is left out: who asks for the training set
    means it.
    """
    split = training.split(fold, choosing)
    side_of: dict[tuple[str, str], str] = {}
    for side in ("validation", "train"):
        for case in (training.cases[id_] for id_ in getattr(split, side)):
            side_of.update(dict.fromkeys(_marks(case, training), side))
    seen: dict[str, list[str]] = {"train": [], "validation": []}
    for name, cases in sets.items():
        for case in cases:
            sides = {side_of[mark] for mark in _marks(case, scored) if mark in side_of}
            if "train" in sides and name != "train":
                seen["train"].append(case.id)
            elif sides == {"validation"} and name not in ("train", "validation"):
                seen["validation"].append(case.id)
    return seen


def _marks(case: PreparedCase, dataset: PreparedDataset) -> set[tuple[str, str]]:
    """What makes a case the same as another: its scan's file, its prepared voxels, its patient in this data set."""
    scan = list(case.info.get("sources", {}).values())[:1]  # the image comes first, then the masks
    voxels, patient = case.info["sha256"]["image.npy"], f"patient in {dataset.name}-{dataset.hash}"
    return {*(("file", digest) for digest in scan), ("voxels", voxels), (patient, case.patient)}


def _identity(case: PreparedCase, set_name: str, structure: str) -> dict[str, str]:
    return {"case": case.id, "patient": case.patient, "site": case.site, "set": set_name, "structure": structure}


def _row(scores: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `cases.csv`: names of the columns, and the reasons as text."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in scores["undefined"].items())
    found = {**scores, **{metric.column: scores[metric.name] for metric in METRICS}, "undefined": reasons}
    return {column: found[column] for column in COLUMNS}


def _first_failure(failure: Exception | None) -> str:
    """What failed on the first rank that did; empty where none did."""
    if not dist.is_initialized():
        return str(failure) if failure else ""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, str(failure) or type(failure).__name__ if failure else "")
    return next((text for text in texts if text), "")
