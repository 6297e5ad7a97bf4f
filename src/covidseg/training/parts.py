"""From a configuration to the parts of a run: what is checked, the LightningModule, the Trainer."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from covidseg.config.build import instantiate
from covidseg.config.paths import CONF
from covidseg.config.plain import as_dict
from covidseg.data.prepare.splits import ALL
from covidseg.evaluation.structures import Task
from covidseg.inference.window import WindowInferer, per_axis
from covidseg.runs.checkpoints import AtomicCheckpointIO
from covidseg.runs.folder import RunFolder, device_count
from covidseg.system.errors import BadInput
from covidseg.system.signals import StopRequest
from covidseg.training.chosen import EarlyStopping
from covidseg.training.initial import check_initial, freeze
from covidseg.training.module import SegmentationTask

T = TypeVar("T")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")  # others keep no state that a run could go on from
_STEP = "SLURM_STEP_ID"  # set for what srun started
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def check(cfg: DictConfig) -> None:
    """What no single component can check: types, and values that have to fit each other. Raises `BadInput`."""
    _check_training(cfg.training)
    _check_choices(cfg)
    _check_trainer(cfg.trainer)
    check_initial(cfg)
    if not _is_like(cfg.seed, 0) or not 0 <= cfg.seed < 2**63:
        raise BadInput(f"seed={cfg.seed}", "is no seed", "use 0, 1, 2, ...")
    window = cfg.data.window
    if not _is_like(window, OmegaConf.create([0.0, 1.0])) or window[0] >= window[1]:
        raise BadInput(f"data.window={window}", "is no range of HU", "give [low,high], as [-1250,250]")
    if cfg.fold not in (None, ALL) and not _is_like(cfg.fold, 0):
        raise BadInput(f"fold={cfg.fold}", "is no fold", f"use null, {ALL}, or 0, 1, 2, ...")
    if cfg.fold == ALL and cfg.training.evaluate == "best":
        raise BadInput("training.evaluate=best", f"fold={ALL} keeps no case to choose by", "training.evaluate=last")
    if cfg.training.score_on == "validation":
        option = "training.score_on=validation"
        if cfg.training.evaluate == "best":
            raise BadInput(option, "would score a checkpoint on the cases it was chosen by", "training.evaluate=last")
        if cfg.fold == ALL:
            raise BadInput(option, f"fold={ALL} keeps no case to score on", "leave one of them out")


def _check_training(training: DictConfig) -> None:
    for key, example in OmegaConf.load(CONF / "recipe" / "paper.yaml").training.items():
        if not _is_like(training[key], example):
            raise BadInput(f"training.{key}={training[key]}", "is of the wrong kind", f"the paper's is {example}")
    for key in ("max_steps", "validate_every", "checkpoint_every", "log_every", "batch_size"):
        if training[key] < 1:
            raise BadInput(f"training.{key}={training[key]}", "must be at least 1", "give a whole number")
    if training.validate_every > training.max_steps:
        wrong = f"is more than training.max_steps={training.max_steps}: the run would never be validated"
        raise BadInput(f"training.validate_every={training.validate_every}", wrong, "lower it")
    if training.gradient_clip is not None and training.gradient_clip <= 0:
        raise BadInput(f"training.gradient_clip={training.gradient_clip}", "is no norm", "null, or more than 0")


def _check_choices(cfg: DictConfig) -> None:
    for key, value, choices in (
        ("resume", cfg.resume, ("auto", "require", "never")),
        ("training.evaluate", cfg.training.evaluate, ("last", "best")),
        ("training.score_on", cfg.training.score_on, ("held_out", "validation")),
        ("logger.backend", cfg.logger.backend, ("csv", "wandb")),
        ("logger.mode", cfg.logger.get("mode", "auto"), ("auto", "online", "offline")),
        ("trainer.deterministic", cfg.trainer.deterministic, (True, False)),
        ("trainer.progress", cfg.trainer.progress, (True, False)),
        ("trainer.strategy", cfg.trainer.strategy, STRATEGIES),
        ("trainer.profiler", cfg.trainer.profiler, (None, *PROFILERS)),
    ):
        if value not in choices:
            known = ", ".join("null" if choice is None else str(choice) for choice in choices)
            raise BadInput(f"{key}={value}", "there is no such choice", f"one of {known}")


def _check_trainer(trainer: DictConfig) -> None:
    accumulated = trainer.accumulate_grad_batches
    if not _is_like(accumulated, 1) or accumulated < 1:
        option = f"trainer.accumulate_grad_batches={accumulated}"
        raise BadInput(option, "must be at least 1", "give a whole number")
    if str(trainer.devices) in ("0", "[]", ""):
        raise BadInput(f"trainer.devices={trainer.devices}", "is no device to train on", "use 1, 2, ... or auto")


def _is_like(value: Any, example: Any) -> bool:
    """Whether `value` may stand where `example` stands; where that is null, a number or null may."""
    if isinstance(example, ListConfig):
        return isinstance(value, ListConfig) and len(value) == len(example) and all(map(_is_like, value, example))
    if example is None:
        return value is None or _is_like(value, 1.0)
    kinds = (int, float) if isinstance(example, float) else (type(example),)
    return isinstance(value, kinds) and isinstance(value, bool) is isinstance(example, bool)


def build_task(cfg: DictConfig, stop: StopRequest) -> SegmentationTask:
    """The LightningModule of a configuration; the network's first weights follow from `cfg.seed`."""
    torch.manual_seed(cfg.seed)
    network = instantiate(cfg.model, "model")
    for key in ("training.patch_size_zyx", "inference.roi_zyx"):
        _check_size(key, OmegaConf.select(cfg, key), network)
    freeze(network, cfg.freeze)
    if cfg.training.compile:
        network.compile()
    task = Task.from_config(cfg.task)
    if cfg.model.out_channels != task.out_channels:
        wrong = f"is not what task {task.name} needs"
        raise BadInput(f"model.out_channels={cfg.model.out_channels}", wrong, f"{task.out_channels}: leave it out")
    optimizer = as_dict(cfg.optimizer)
    module = SegmentationTask(
        network=network,
        schedule=_tried("optimizer.schedule", lambda: instantiate(optimizer.pop("schedule"), "optimizer")),
        loss=_tried("loss", lambda: instantiate(cfg.loss, "loss")),
        optimizer=instantiate({**optimizer, "_partial_": True}, "optimizer"),
        augment=_tried("augment", lambda: instantiate(cfg.augment, "augment")),
        task=task,
        window=cfg.data.window,
        inferer=_tried("inference", lambda: WindowInferer(**cfg.inference)),
        seed=cfg.seed,
        channels_last=cfg.training.channels_last,
        stopping=lambda: stop.signum != 0,
    )
    _rehearse(module)
    return module


def _rehearse(module: SegmentationTask) -> None:
    """Use each part once on something small: a value that none can work with ends the run here, named, not in step 1.

    Raises `BadInput`. Draws no number of the run's own.
    """
    size = (1, 1, 8, 8, 8)
    image, labels, rng = torch.full(size, 0.5), torch.zeros(size, dtype=torch.uint8), torch.Generator().manual_seed(0)
    for name, transform in module.augment.transforms.items():
        _tried(f"augment.{name}", partial(transform.surely(), image, labels, rng))
    logits = torch.zeros(1, module.task.out_channels, 2, 2, 2)
    loss = _tried("loss", lambda: module.loss(logits, torch.zeros(1, 2, 2, 2, dtype=torch.int64)))
    if not torch.isfinite(loss):
        raise BadInput("loss", f"is {loss.item()} on a small patch already", "correct its weights")
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    _tried("optimizer", lambda: module.optimizer([weight]).step())
    factors = _tried("optimizer.schedule", lambda: [float(module.schedule(step)) for step in (0, 1, 2)])
    if not all(0 <= factor < math.inf for factor in factors):
        raise BadInput("optimizer.schedule", f"gives factors of {factors} in the first steps", "correct its numbers")


def _tried(option: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`; what it raises is told as a fault of `option`."""
    try:
        return attempt()
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise BadInput(option, " ".join(str(error).split()), "--help shows the options") from error


def _check_size(key: str, size_zyx: Sequence[int] | None, network: nn.Module) -> None:
    stride = per_axis(cast(int, network.stride))
    if size_zyx is not None and any(n < 1 or n % step for n, step in zip(size_zyx, stride, strict=True)):
        fitting = ",".join(str(max(-(-n // step), 1) * step) for n, step in zip(size_zyx, stride, strict=True))
        wrong = f"is not a multiple of the network's stride {stride}"
        raise BadInput(f"{key}={list(size_zyx)}", wrong, f"use [{fitting}]")


def chosen_callbacks(cfg: DictConfig, validates: bool) -> list[pl.Callback]:
    """The callbacks of the `callbacks` group. Raises `BadInput` for one that would wait for a validation in vain."""
    made = []
    for name, node in (cfg.get("callbacks") or {}).items():
        callback = instantiate(node, "callbacks", f"callbacks.{name}.")
        if not isinstance(callback, pl.Callback):
            raise BadInput(f"callbacks.{name}", "is no callback of Lightning", "see conf/callbacks")
        if isinstance(callback, EarlyStopping) and not validates:
            wrong = "this run has no validation case that could tell when to stop"
            raise BadInput(f"callbacks={name}", wrong, "leave it out, or set data.splits.validation_fraction")
        made.append(callback)
    return made


def check_cluster(trainer: DictConfig, environment: Mapping[str, str]) -> None:
    """What SLURM started against what the run is made of. Raises `BadInput`.

    Tasks that are missing would be waited for, and tasks too many would each train the run. A process of `sbatch` that
    no `srun` started is alone, whatever the job was given.
    """
    devices = device_count(trainer.devices)
    if devices is None or not SLURMEnvironment.detect():
        return
    count, wanted = int(environment.get("SLURM_NTASKS", 1)), devices * trainer.num_nodes
    if _STEP not in environment:
        if wanted > 1:
            wrong = f"are {wanted} processes, and sbatch alone starts one"
            raise BadInput(f"trainer.devices={trainer.devices}", wrong, "srun python src/train.py ... in the script")
    elif count != wanted:
        wrong = f"of {trainer.num_nodes} nodes are {wanted} processes, and srun starts {count}"
        remedy = f"srun --ntasks={wanted}, or trainer.devices={max(1, count // trainer.num_nodes)}"
        raise BadInput(f"trainer.devices={trainer.devices}", wrong, remedy)


def make_trainer(
    cfg: DictConfig,
    folder: RunFolder,
    loggers: Sequence[Any],
    callbacks: Sequence[pl.Callback],
    watch: Profiler | None = None,
) -> pl.Trainer:
    """Lightning's Trainer with what this suite does itself (checkpoints, progress, sampling) switched off in it.

    `watch` is its profiler where `trainer.profiler` names none.
    """
    options, training = cfg.trainer, cfg.training
    devices = _devices(options, folder)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and _STEP not in os.environ:
        plugins.append(LightningEnvironment())  # sbatch without srun: this process is alone in the job
    elif SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # its handler saves inside the signal handler
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=options.num_nodes,
            strategy=_strategy(options, devices),
            accumulate_grad_batches=options.accumulate_grad_batches,
            profiler=_profiler(options.profiler, folder) or watch,
            precision=cast(Any, _precision(options, folder)),
            deterministic=options.deterministic,
            benchmark=not options.deterministic,  # patches have one size: cuDNN may search for the fastest kernels
            sync_batchnorm=training.sync_batchnorm,
            max_steps=training.max_steps,
            max_epochs=-1,
            val_check_interval=training.validate_every * options.accumulate_grad_batches,  # Lightning counts batches
            gradient_clip_val=training.gradient_clip,
            log_every_n_steps=training.log_every,
            logger=list(loggers),
            callbacks=list(callbacks),
            plugins=plugins,
            default_root_dir=folder.path,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise BadInput("trainer", str(error).splitlines()[0], "--help shows the options") from error


def _devices(options: DictConfig, folder: RunFolder) -> Any:
    """What `trainer.devices` means here; `auto` keeps as many as an unfinished run began with."""
    if isinstance(options.devices, ListConfig):
        return list(options.devices)
    if device_count(options.devices) is None and (began := folder.began.get("processes")):
        return began // options.num_nodes
    return options.devices


def _strategy(options: DictConfig, devices: Any) -> Any:
    count = device_count(devices)
    if count is None:
        count = torch.cuda.device_count() if options.accelerator != "cpu" else 1
    if options.strategy == "auto" and count * options.num_nodes <= 1:
        return "auto"
    return DDPStrategy(
        timeout=timedelta(minutes=options.collective_timeout_minutes),
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # in each step, for statistics that nobody reads there; SegmentationTask does it
        find_unused_parameters=options.strategy == "ddp_find_unused_parameters_true",
    )


def _profiler(name: str | None, folder: RunFolder) -> Profiler | None:
    """Lightning's profiler of that name, which writes into profile/ in the run's folder."""
    return PROFILERS[name](dirpath=folder.path / "profile", filename=name) if name else None


def _precision(options: DictConfig, folder: RunFolder) -> str:
    """What `trainer.precision` means here; `auto` keeps what an unfinished run began with."""
    if options.precision != "auto":
        return options.precision
    if began := folder.began.get("precision"):
        return began
    if options.accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
