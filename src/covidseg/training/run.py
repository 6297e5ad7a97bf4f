"""One run, from its configuration to its results: prepare, fit, evaluate, write."""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.console import Console

from covidseg import tracking
from covidseg.data.prepare.run import prepare
from covidseg.data.prepare.splits import ALL, chooses
from covidseg.data.staging import staged
from covidseg.data.store import LABELS, PreparedCase, PreparedDataset
from covidseg.data.train.datamodule import CTDataModule
from covidseg.evaluation.cases import evaluate_cases
from covidseg.evaluation.results import summarise_sets, summary_table, write_results
from covidseg.evaluation.scores import CaseScores
from covidseg.evaluation.structures import Task
from covidseg.inference.calibration import keep_calibration
from covidseg.inference.segmenter import load
from covidseg.inference.window import has_bf16_units
from covidseg.nets.cost import network_cost
from covidseg.runs import manifest, predictions
from covidseg.runs.checkpoints import checkpoint_name, require_training_state, to_resume
from covidseg.runs.folder import NOT_SCORED, RunFolder, config_hash, effective_batch, plain, run_dir
from covidseg.runs.slices import keeping_slices, shown_cases
from covidseg.runs.timing import told
from covidseg.system.devices import require_given_gpus, slow_precision
from covidseg.system.errors import BadInput, EnvironmentFault, Interrupted
from covidseg.system.faults import is_out_of_memory
from covidseg.system.signals import StopRequest
from covidseg.system.terminal import case_progress
from covidseg.training import agreement, processes
from covidseg.training.agreement import agreed
from covidseg.training.callbacks import SaveAndStop
from covidseg.training.initial import Source
from covidseg.training.module import SegmentationTask
from covidseg.training.parts import build_task, check, check_cluster, chosen_callbacks, make_trainer
from covidseg.training.progress import EvaluationReport, ProgressReporter
from covidseg.training.time_shares import TimeShares


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Do what is missing of the run that `cfg` describes; returns the content of metrics.json, None if nothing was.

    A finished run is left alone, an unfinished one goes on from its last checkpoint. Raises `BadInput` where the
    configuration, the data or the folder do not allow that, and `Interrupted` after a signal, once the state is saved.
    """
    _quieten_lightning()
    check(cfg)
    check_cluster(cfg.trainer, os.environ)
    if cfg.trainer.accelerator != "cpu":
        require_given_gpus(torch.cuda.device_count)
    folder = RunFolder(run_dir(cfg))
    if processes.rank():
        return _run(cfg, folder)
    with folder.lock():
        if folder.has_nothing_to_do(cfg):
            return None
        folder.claim(cfg)
        if folder.is_finished:  # and resume=never, or there were nothing to do
            raise BadInput(str(folder), "holds a finished run", "choose another name= or row=, or leave resume out")
        with _ending_on_record(folder):
            return _run(cfg, folder)


def would_train(cfg: DictConfig) -> str:
    """What `train` would do, in a line; only the run's folder is looked at, nothing is written. Raises `BadInput`."""
    check(cfg)
    folder = RunFolder(run_dir(cfg))
    parameters, multiply_adds = network_cost(cfg.model, cfg.training.patch_size_zyx)
    if folder.is_finished:
        state = "is finished: nothing to do"
    elif step := (folder.status or {}).get("step"):
        state = f"would go on from step {step} of {cfg.training.max_steps}"
    else:
        state = f"would train for {cfg.training.max_steps} steps"
    size = f"{parameters / 1e6:.2f} M parameters, {multiply_adds / 1e9:.1f} G multiply-adds a patch"
    return f"{folder} {state}; {size}; {cfg.data.name}, configuration {config_hash(cfg)}"


def _run(cfg: DictConfig, folder: RunFolder) -> dict[str, Any] | None:
    processes.follow_parent()
    stop = StopRequest(
        farewell=lambda reason: folder.write_status("interrupted", reason=reason),
        waits_in=agreement.WAITS_IN,
        waits_busily=torch.cuda.is_available(),
    )
    task = build_task(cfg, stop)  # before the data: what is wrong with it need not wait for their preparation
    opening = time.perf_counter()
    dataset = _open_data(cfg)
    times = TimeShares(preparing=time.perf_counter() - opening)
    training = plain(cfg)["training"]
    choosing = chooses(cfg.training)
    data = CTDataModule(
        dataset, cfg.fold, list(cfg.task.structures), training, cfg.seed, choosing, cfg.training.score_on
    )
    if cfg.training.evaluate == "best" and not data.can_choose:
        wrong = f"no validation case of {dataset.name} has a {' or '.join(data.structures)} to be found"
        raise BadInput("training.evaluate=best", wrong, _without_validation(cfg, data))
    if cfg.fold == ALL and not processes.rank():
        print(f"{folder}: {_everything(data)}")
    with stop.installed(), processes.announced_to_children(Path(dataset.folder).absolute()):
        checkpoint = _checkpoint(cfg, folder, task)
        source = _begin_with(cfg, folder, task, data) if checkpoint is None else None
        loggers = tracking.make_loggers(cfg, folder)
        saver = SaveAndStop(folder.checkpoints, training["checkpoint_every"], training["validate_every"], stop)
        reporter = ProgressReporter(
            folder, training["max_steps"], training["batch_size"], training["log_every"], cfg.trainer.progress, times
        )
        chosen = chosen_callbacks(cfg, validates=bool(data.sets["validation"]))
        # The chosen ones first: at a step's start they give the network its own weights back, which are then saved.
        callbacks = [*chosen, times, saver, reporter, *tracking.callbacks(cfg)]
        trainer = make_trainer(cfg, folder, loggers, callbacks, times.watch)
        if not data.sets["validation"]:
            trainer.limit_val_batches = 0
        with _ending_tracked(loggers), processes.ending_together(trainer, folder), _memory_explained(cfg):
            facts = _record(cfg, folder, dataset, data, trainer, source)
            tracking.log_manifest(loggers, facts, folder)
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
            fitted = time.perf_counter()
            rows = _evaluate(folder, data, trainer, stop)
            times.evaluated(time.perf_counter() - fitted)
            if processes.rank():
                return None
            extra = {
                "train": {
                    "seconds": round(reporter.seconds, 1),
                    "steps": trainer.global_step,
                    "patches_per_second": round(reporter.patches_per_second, 2),
                },
                "seconds": times.seconds,
                "parameters": facts["parameters"],
                "multiply_adds": facts["multiply_adds"],
                "validation": saver.validated(training["evaluate"]),
            }
            scored = folder.checkpoints / checkpoint_name(training["evaluate"])
            pictures = _pictures(cfg, folder, data) if cfg.logger.backend == "wandb" else {}
            tracking.finish(loggers, rows, {"sets": summarise_sets(rows), **extra}, "finished", scored, pictures)
            if cfg.fold == ALL:
                extra["not_scored"] = f"fold={ALL}: every case was trained on, and no score was asked for"
            metrics = write_results(folder.path, rows, extra)
            folder.write_status("finished", step=trainer.global_step, seconds=times.seconds)
            shown = f"{folder}: {NOT_SCORED}" if cfg.fold == ALL else summary_table(metrics["sets"])
            Console(soft_wrap=True, highlight=False).print(shown)
            print(f"{folder}: {told(times.seconds)}")
            return metrics


def _without_validation(cfg: DictConfig, data: CTDataModule) -> str:
    """What to do where there is nothing to choose a checkpoint by."""
    splits, there = data.dataset.splits, data.dataset.split(cfg.fold, choosing=True).validation
    if cfg.fold is None and there and "validation" not in splits.get("drawn", ()):
        return "set it to last, or declare other validation cases in cases.csv"
    if cfg.fold is not None and splits.get("published") and not there:
        return "set it to last: one patient is left to train on"
    return "set it to last, or raise data.splits.validation_fraction"


def _everything(data: CTDataModule) -> str:
    """What `fold=all` means for these data, in one line."""
    own = data.dataset.split()
    others = [f"{len(cases)} {side}" for side, cases in vars(own).items() if side != "train" and cases]
    among = f", among them its {', '.join(others)} cases" if others else ""
    count = f"{len(data.train_cases)} annotated of {len(data.dataset.cases)}"
    return f"fold={ALL}: trained on all {count} cases of {data.dataset.name}{among}; no case is left to be scored on"


def _open_data(cfg: DictConfig) -> PreparedDataset:
    if folder := processes.announced():
        return PreparedDataset.open(folder)
    structures = list(cfg.task.structures)
    dataset = prepare(cfg.data, cfg.paths, lambda division: division.require(cfg.fold, structures))
    here = staged(Path(dataset.folder))
    return dataset if here == Path(dataset.folder) else PreparedDataset.open(here)


def _checkpoint(cfg: DictConfig, folder: RunFolder, task: SegmentationTask) -> Path | None:
    """The checkpoint to go on from, said aloud; None: start at step 0."""
    found = to_resume(folder.checkpoints)
    if found is None:
        if cfg.resume == "require":
            raise BadInput(str(folder), "there is no checkpoint to resume from", "resume=auto starts from scratch")
        return None
    path, content, passed_over = found
    migrated = require_training_state(path, content)
    step = content["global_step"]
    if cfg.resume == "never":
        raise BadInput(str(folder), f"holds a run at step {step}", "resume=auto goes on; or choose another row=")
    ours, theirs = task.state_dict(), content["state_dict"]
    if odd := [name for name in sorted(ours.keys() ^ theirs.keys())] or [
        name for name in ours if ours[name].shape != theirs[name].shape
    ]:
        wrong = f"does not fit the network: {', '.join(odd[:3])} and {len(odd) - 3} more" if odd[3:] else str(odd)
        raise BadInput(path.name, wrong, "the code changed since it was written: check out the manifest's commit")
    if not processes.rank():
        for notice in filter(None, (passed_over, migrated)):
            print(notice)
        print(f"{folder}: resuming from {path.name} at step {step}, configuration {config_hash(cfg)}")
    return path


def _begin_with(
    cfg: DictConfig, folder: RunFolder, task: SegmentationTask, data: CTDataModule
) -> dict[str, Any] | None:
    """Take the first weights from the run that `init_from` names; what of it goes into the manifest."""
    if cfg.init_from is None:
        return None
    source = Source.open(str(cfg.init_from))
    sets = {name: data.sets[name] for name in data.scored}
    doubt = source.refuse_leak(sets, data.dataset, str(cfg.paths.data))
    said = source.give(task.network, cfg.init_parts, cfg.freeze)
    if not processes.rank():
        print(f"{folder}: {said}")
        for line in (*source.differences(cfg), *([doubt] if doubt else [])):
            print(f"note: {line}")
    return {"run": str(source.folder), "checkpoint_sha256": source.digest, "weights": said}


def _record(
    cfg: DictConfig,
    folder: RunFolder,
    dataset: PreparedDataset,
    data: CTDataModule,
    trainer: pl.Trainer,
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    """manifest.json, written by the first process; what it says is known on all."""
    parameters, multiply_adds = network_cost(cfg.model, cfg.training.patch_size_zyx)
    init = source or (folder.manifest or {}).get("init")  # a run that goes on keeps what it began with
    run: dict[str, Any] = {
        "config_hash": config_hash(cfg),
        "data": {"name": dataset.name, "hash": dataset.hash},
        "cases": {"train": len(data.train_cases), **{name: len(cases) for name, cases in data.sets.items()}},
        "protocol": {**data.protocol, "evaluate": cfg.training.evaluate},
        "left_out": data.left_out,  # training cases without a mask of each structure
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        **({"init": init} if init else {}),
    }
    attempt = {
        **manifest.devices(trainer.strategy.root_device, trainer.world_size),
        "precision": trainer.precision,
        "nodes": trainer.num_nodes,
        "accumulated": trainer.accumulate_grad_batches,
        "effective_batch_size": effective_batch(cfg, trainer.world_size),
    }
    if processes.rank():
        return run
    print(
        f"{folder}: {dataset.name}, {run['cases']['train']} training cases; {parameters / 1e6:.2f} M parameters; "
        f"{attempt['processes']} x {attempt['device']}, {attempt['precision']}, batch {attempt['effective_batch_size']}"
    )
    if word := slow_precision(trainer.strategy.root_device.type, str(trainer.precision), has_bf16_units()):
        print(f"note: {word}")
    return manifest.record(folder.path, run, attempt)


def _evaluate(folder: RunFolder, data: CTDataModule, trainer: pl.Trainer, stop: StopRequest) -> list[dict[str, Any]]:
    """Scores on the held-out sets with the weights that `training.evaluate` names, each case on one process."""
    if not data.scored:
        return []
    device = trainer.strategy.root_device
    segmenter = load(folder.path, device=str(device))
    sets = {name: data.sets[name] for name in data.scored}
    shown = shown_cases(segmenter.task, sets)

    def segment(case: PreparedCase) -> np.ndarray:
        if stop.signum:  # what comes now is thrown away below, on all processes
            return np.zeros(case.grid.native.shape_zyx, np.uint8)
        watch = partial(keep_calibration, folder.path, segmenter.task, case) if case.id in shown else None
        return segmenter.segment_prepared(case, watch)

    console = Console(soft_wrap=True, highlight=False, quiet=processes.rank() > 0)
    with case_progress(console, sets) as progress:
        report = EvaluationReport(
            folder, sum(map(len, sets.values())), not console.is_terminal, progress, trainer.world_size
        )
        rows = evaluate_cases(
            keeping_slices(segment, folder.path, segmenter.task, sets),
            sets,
            segmenter.task,
            None if processes.rank() else report,
            scores=CaseScores().to(device),
        )
    if word := agreed(stop.signum, device):
        raise Interrupted("run", f"stopped by signal {word} while evaluating", "the same command evaluates again", word)
    return rows


def _pictures(cfg: DictConfig, folder: RunFolder, data: CTDataModule) -> dict[str, list[dict[str, Any]]]:
    """Slices of held-out cases with what was predicted, for the tracker: of each set as many as of a validation."""
    task = Task.from_config(cfg.task)
    found = {}
    for name in data.scored:
        wanted = shown_cases(task, {name: data.sets[name]})
        cases = [case for case in data.sets[name] if case.id in wanted][: cfg.logger.overlays]
        for case in cases:
            with suppress(BadInput):  # what cannot be tracked ends no run
                masks = predictions.load(folder.path / predictions.FOLDER / f"{case.id}.npz")
                drawn = tracking.case_pictures(case.id, case.image, np.asarray(case.mask), masks, LABELS)
                found[f"{name}/{case.id}"] = drawn
    return found


def _quieten_lightning() -> None:
    """Lightning's notices name nothing that this suite's own lines do not; its warnings and errors stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # scores come from the rows of all processes already


@contextmanager
def _ending_on_record(folder: RunFolder) -> Iterator[None]:
    """status.json says how the run ended, unless the process is killed."""
    try:
        yield
    except KeyboardInterrupt as error:
        folder.write_status("interrupted", reason="stopped before the first step")
        raise Interrupted("run", "stopped before the first step", "the same command starts it", SIGINT) from error
    except Interrupted as error:
        folder.write_status("interrupted", reason=str(error))
        raise
    except BaseException as error:
        folder.write_status("failed", reason=" ".join(str(error).split()) or type(error).__name__)
        raise


@contextmanager
def _ending_tracked(loggers: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        tracking.finish(loggers, [], {}, "interrupted" if isinstance(error, Interrupted) else "failed")
        raise


@contextmanager
def _memory_explained(cfg: DictConfig) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        free = f", {torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB free" if torch.cuda.is_available() else ""
        size = " x ".join(map(str, cfg.training.patch_size_zyx))
        can_recompute = cfg.model.get("checkpoint_activations") is False
        recomputing = "set model.checkpoint_activations=true, or " if can_recompute else ""
        raise EnvironmentFault(
            "memory",
            f"exhausted by {cfg.training.batch_size} patches of {size} a process{free}",
            f"{recomputing}lower training.batch_size or model.width",
        ) from error
