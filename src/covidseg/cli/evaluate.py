"""`python src/evaluate.py`: scores of a run, or of a folder of masks, on any data set."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from covidseg.cli.app import application
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import read_json
from covidseg.system.terminal import case_progress

MADE_BY = {"made_by": "evaluate.py"}  # in metrics.json: what stands beside it was written here, and may be replaced


@application("evaluate")
def main(cfg: DictConfig) -> None:
    """Score every case of the chosen sets, print the summary, write cases.csv and metrics.json.

    Or choose the run's postprocessing.
    """
    from covidseg.cli.predict import inference_options
    from covidseg.config.options import switch
    from covidseg.data.prepare.splits import chooses
    from covidseg.data.sets import annotated, remark
    from covidseg.evaluation.cases import evaluate_cases, evaluate_masks
    from covidseg.evaluation.results import implausible, summary_table, write_results
    from covidseg.evaluation.structures import Task
    from covidseg.inference.segmenter import load

    if (cfg.run is None) == (cfg.predictions is None):
        raise BadInput("run", "give a run or a folder of predictions, one of the two", "run=... or predictions=...")
    if cfg.run is not None and "task" in cfg:
        raise BadInput("task", "is fixed by the run", "leave it out")
    if cfg.fold is not None and "data" not in cfg:
        raise BadInput(f"fold={cfg.fold}", "is fixed by the run on its own data", "leave it out")
    console = Console(soft_wrap=True, highlight=False)
    started = time.perf_counter()
    if cfg.run is not None:
        runs = [str(run) for run in cfg.run] if isinstance(cfg.run, ListConfig) else [str(cfg.run)]
        segmenter = load(runs, cfg.checkpoint, cfg.device, **inference_options(cfg.inference))
        task, folder = segmenter.task, Path(runs[0])
        if switch(cfg, "choose_postprocessing"):
            _choose_postprocessing(cfg, segmenter, folder, console)
            return
        _require_one_division(cfg, segmenter)
        dataset, fold, output = _data_of(cfg, segmenter.config, folder)
        known, sets = _choose(cfg, dataset, fold, task, chooses(segmenter.config["training"]))
        scored = annotated(sets, task.structures)
        seen = [_seen(scored, dataset, one, run, cfg) for one, run in zip(segmenter.members, runs, strict=True)]
        with case_progress(console, scored) as progress:
            rows = evaluate_cases(segmenter.segment_prepared, sets, task, progress)
        source: dict[str, Any] = {name: value for name, value in segmenter.identity.items() if name != "task"}
        source |= {"inference": segmenter.settings, "seen_in_training": seen[0] if len(seen) == 1 else seen}
    else:
        if "task" not in cfg or "data" not in cfg:
            raise BadInput("predictions", "need to know what they are scored against", "add task=... and data=...")
        task, folder, source = Task.from_config(cfg.task), Path(cfg.predictions), {}
        dataset, fold, output = _data_of(cfg, None, folder)
        known, sets = _choose(cfg, dataset, fold, task)
        each = {f"{part}, {name}": cases for part in task.structures for name, cases in annotated(sets, [part]).items()}
        with case_progress(console, each) as progress:
            rows = evaluate_masks(folder, sets, task, progress)

    doubts = implausible(rows)
    metrics = write_results(output, rows, {"data": dataset.folder.name, **source, "flags": doubts, **MADE_BY})
    console.print(summary_table(metrics["sets"]))
    for doubt in doubts[:5]:
        console.print(f"note: {doubt['case']}: {doubt['text']}", markup=False)
    if len(doubts) > 5:
        console.print(f"note: {len(doubts) - 5} more in metrics.json")
    count = len({(row["set"], row["case"]) for row in rows})
    seconds = f"{(time.perf_counter() - started) / count:.1f} s per case"
    without = sum(map(len, sets.values())) - count
    more = f"; {without} more have no {' or '.join(task.structures)} annotated" if without else ""
    console.print(f"{count} cases, {seconds}{more}", markup=False)
    if line := remark(known, sets):
        console.print(line, markup=False)
    console.print(str(output), markup=False)


def _data_of(cfg: DictConfig, run: Mapping[str, Any] | None, folder: Path) -> tuple[Any, int | str | None, Path]:
    """(data set, fold, output): the command's data, or else the run's own, at the voxel size the run was trained on.

    `folder` (the run's or the masks') holds the output where none was given.
    """
    from covidseg.config.options import switch
    from covidseg.data.prepare.run import plain, prepare
    from covidseg.runs.training_data import training_data

    overwrite = switch(cfg, "overwrite")
    home, own = str(cfg.paths.data or "data"), run if "data" not in cfg else None
    if own is not None:
        data, fold = _moved(dict(own["data"]), str(own["paths"]["data"]), home), own["fold"]
    else:
        data, fold = _undivided(plain(cfg.data), cfg.fold), cfg.fold
    if run is not None:
        data["spacing_zyx"] = run["data"]["spacing_zyx"]
    if cfg.output is not None:  # before the work
        _refuse_output(Path(str(cfg.output)), data["root"], overwrite)
    dataset = training_data(folder, own, home) if own is not None else None
    # A run's configuration is a stranger's: it may say what is read, but nothing is computed or written where it says.
    dataset = dataset or prepare(data, {"data": home}, computing=own is None)
    output = Path(str(cfg.output)) if cfg.output is not None else folder / "evaluation" / dataset.folder.name
    if cfg.output is None and not output.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{folder.name}/evaluation", "is a link out of the run folder", "give output=...")
    _refuse_output(output, data["root"], overwrite)
    if run is not None and list(dataset.spacing_zyx) != list(data["spacing_zyx"]):
        wrong = f"was prepared at {dataset.spacing_zyx} mm, the run was trained at {tuple(data['spacing_zyx'])} mm"
        raise BadInput(dataset.folder.name, wrong, "prepare it again with the run's data.spacing_zyx")
    return dataset, fold, output


def _undivided(data: dict[str, Any], fold: object) -> dict[str, Any]:
    """Options of other data than the run's: no share of the patients is drawn but what the command line asks for.

    A share drawn on the spot is nobody's test set, and would leave most scans out. Who names a `fold` wants the
    division that the options make.
    """
    if fold is not None and (type(fold) is not int or fold < 0):
        raise BadInput(f"fold={fold}", "is no fold of other data", "use 0, 1, 2, ..., or leave it out")
    asked = {argument.lstrip("+").partition("=")[0] for argument in HydraConfig.get().overrides.task}
    if fold is None and "data.splits" not in asked:
        shares = ("test_fraction", "validation_fraction", "folds")
        data["splits"] |= {key: 0 for key in shares if f"data.splits.{key}" not in asked}
    return data


def _choose(
    cfg: DictConfig, dataset: Any, fold: int | str | None, task: Any, choosing: bool = False
) -> tuple[dict[str, list], dict[str, list]]:
    """({set: cases} that there are, those that are scored)."""
    from covidseg.data.sets import choose, defined_sets, own_sets

    own = "data" not in cfg
    if own:
        sets = own_sets(dataset, fold, choosing)
    else:
        # a folder given as it is was divided by other options; one of an older format does not say what it drew
        drawn = dataset.splits.get("drawn", ("validation", "test")) if cfg.data.prepared and fold is None else ()
        sets = defined_sets(dataset, fold, drawn)
    wanted = list(cfg.sets) if OmegaConf.is_list(cfg.sets) else cfg.sets
    return sets, choose(dataset.name, sets, wanted, list(task.structures), own)


def _choose_postprocessing(cfg: DictConfig, segmenter: Any, folder: Path, console: Console) -> None:
    """Find the threshold and the smallest piece for a run's validation cases, say what they gain, and keep them."""
    from covidseg.data.prepare.splits import chooses
    from covidseg.data.sets import own_sets
    from covidseg.inference.postprocessing import choose

    if segmenter.others or segmenter.postprocessing or "data" in cfg:
        wrong = "is of one run on its own validation cases, without any postprocessing yet"
        raise BadInput("choose_postprocessing", wrong, "give one run=..., no data=..., and no inference.postprocess")
    dataset, fold, _ = _data_of(cfg, segmenter.config, folder)
    cases = own_sets(dataset, fold, chooses(segmenter.config["training"])).get("validation", [])
    with case_progress(console, {"validation": cases}) as progress:
        choice = choose(segmenter, cases, progress)
    path = choice.save(folder, segmenter, dataset.folder.name)
    found = choice.postprocessing
    console.print(
        f"{choice.structure}: threshold {found.threshold:g}, pieces from {found.smallest_ml:g} ml on; mean Dice of "
        f"{len(choice.cases)} validation cases {choice.before:.3f} without, {choice.after:.3f} with it"
    )
    console.print(f"{path}: used by inference.postprocess=true", markup=False)


def _require_one_division(cfg: DictConfig, segmenter: Any) -> None:
    """Raise `BadInput` where several runs are to be scored together on data that they did not divide alike.

    The test cases of one fold were trained on in another.
    """
    if not segmenter.others:
        return
    if cfg.output is None:
        raise BadInput("output", "of several runs has no place of its own", "give output=<folder>")
    if "data" in cfg:
        return
    first = segmenter.config
    for one in segmenter.others:
        if (one.config["data"], one.config["fold"]) != (first["data"], first["fold"]):
            wrong = f"was not trained on the data and fold of {segmenter.name}"
            raise BadInput(f"run={one.name}", wrong, "score them on other data with data=..., or each by itself")


def _seen(
    sets: Mapping[str, list], dataset: Any, segmenter: Any, run: str, cfg: DictConfig
) -> dict[str, list[str]] | None:
    """Which of the cases the run has seen in training, with a warning; None where that cannot be found out."""
    from covidseg.data.prepare.splits import chooses
    from covidseg.evaluation.cases import seen_in_training
    from covidseg.runs.training_data import training_data

    config = segmenter.config
    training = training_data(Path(run), config, str(cfg.paths.data or "data"), dataset)
    if training is not None and training.hash == dataset.hash and "data" not in cfg:
        return {"train": [], "validation": []}  # its own split
    try:
        if training is None:
            raise BadInput(config["data"]["name"], "the data set it was trained on is not here")
        seen = seen_in_training(sets, dataset, training, config["fold"], chooses(segmenter.config["training"]))
    except (CovidSegError, KeyError) as error:
        wrong = f"whether it was trained on any of these cases cannot be told ({error})"
        print(f"warning: {segmenter.name}: {wrong}", file=sys.stderr)
        return None
    if any(seen.values()):
        first = {side: ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "") for side, cases in seen.items()}
        some = "; ".join(f"{side}: {cases}" for side, cases in first.items() if cases)
        counts = f"{sum(map(len, seen.values()))} of {sum(map(len, sets.values()))}"
        wrong = f"{counts} cases were part of its training ({some})"
        remedy = "their scores are too good; score a run on its own split by leaving out data=..."
        print(f"warning: {segmenter.name}: {wrong} -> {remedy}", file=sys.stderr)
    return seen


def _moved(node: Any, old: str, new: str) -> Any:
    """The run's data options where what lay in its `paths.data` lies in another one now; what is still there stays."""
    if isinstance(node, Mapping):
        return {key: _moved(value, old, new) for key, value in node.items()}
    if isinstance(node, str) and node.startswith(f"{old}/") and not Path(node).exists():
        return new + node.removeprefix(old)
    return node


def _refuse_output(output: Path, root: object, overwrite: bool) -> None:
    """Raise `BadInput` where the results would stand among somebody else's files, or in their place."""
    what, remedy = f"output={output}", "choose another folder with output=..."
    if os.path.lexists(output) and not output.is_dir():
        raise BadInput(what, "is a file", "give a folder")
    if (output / "config.yaml").exists():
        raise BadInput(what, "is a run folder, with a cases.csv and metrics.json of its own", remedy)
    if root is not None and output.resolve().is_relative_to(Path(str(root)).expanduser().resolve()):
        raise BadInput(what, "lies in data.root, among the scans", remedy)
    there = [name for name in ("cases.csv", "metrics.json") if os.path.lexists(output / name)]
    if there and not overwrite and not _made_here(output / "metrics.json"):
        raise BadInput(what, f"holds a {there[0]} that evaluate.py did not write", f"{remedy}, or overwrite=true")


def _made_here(metrics: Path) -> bool:
    try:
        return read_json(metrics).items() >= MADE_BY.items()
    except (OSError, ValueError, AttributeError):
        return False


if __name__ == "__main__":
    main()
