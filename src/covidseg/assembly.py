"""From a configuration to the parts of a run: what is checked, the LightningModule, the Trainer."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from covidseg.build import instantiate
from covidseg.checkpoints import AtomicCheckpointIO
from covidseg.errors import BadInput
from covidseg.inference import WindowInferer
from covidseg.paths import CONF
from covidseg.runs import RunFolder
from covidseg.signals import StopRequest
from covidseg.structures import Task
from covidseg.task import SegmentationTask


def check(cfg: DictConfig) -> None:
    """What no single component can check: types, and values that have to fit each other. Raises `BadInput`."""
    training = cfg.training
    for key, example in OmegaConf.load(CONF / "recipe" / "paper.yaml").training.items():
        if not _is_like(training[key], example):
            raise BadInput(f"training.{key}={training[key]}", "is of the wrong kind", f"the paper's is {example}")
    for key in ("max_steps", "validate_every", "checkpoint_every", "log_every", "batch_size"):
        if training[key] < 1:
            raise BadInput(f"training.{key}={training[key]}", "must be at least 1", "give a whole number")
    if training.validate_every > training.max_steps:
        wrong = f"is more than training.max_steps={training.max_steps}: the run would never be validated"
        raise BadInput(f"training.validate_every={training.validate_every}", wrong, "lower it")
    for key, value, choices in (
        ("resume", cfg.resume, ("auto", "require", "never")),
        ("training.evaluate", training.evaluate, ("last", "best")),
    ):
        if value not in choices:
            raise BadInput(f"{key}={value}", "there is no such choice", f"one of {', '.join(choices)}")
    if not _is_like(cfg.seed, 0) or cfg.seed < 0:
        raise BadInput(f"seed={cfg.seed}", "is no seed", "use 0, 1, 2, ...")
    if cfg.fold is not None and not _is_like(cfg.fold, 0):
        raise BadInput(f"fold={cfg.fold}", "is no fold", "use null, or 0, 1, 2, ...")


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
    network = instantiate(cfg.model)
    for key in ("training.patch_size_zyx", "inference.roi_zyx"):
        _check_size(key, OmegaConf.select(cfg, key), network)
    if cfg.training.compile:
        network.compile()
    optimizer = OmegaConf.to_container(cfg.optimizer, resolve=True)
    schedule = instantiate(optimizer.pop("schedule"))
    return SegmentationTask(
        network=network,
        loss=instantiate(cfg.loss),
        optimizer=instantiate({**optimizer, "_partial_": True}),
        schedule=schedule,
        augment=instantiate(cfg.augment),
        task=Task.from_config(cfg.task),
        window=cfg.data.window,
        inferer=WindowInferer(**cfg.inference),
        seed=cfg.seed,
        channels_last=cfg.training.channels_last,
        stopping=lambda: stop.signum != 0,
    )


def _check_size(key: str, size_zyx: Sequence[int] | None, network: nn.Module) -> None:
    stride = (network.stride,) * 3 if isinstance(network.stride, int) else network.stride
    if size_zyx is not None and any(n < 1 or n % step for n, step in zip(size_zyx, stride, strict=True)):
        fitting = ",".join(str(max(-(-n // step), 1) * step) for n, step in zip(size_zyx, stride, strict=True))
        wrong = f"is not a multiple of the network's stride {stride}"
        raise BadInput(f"{key}={list(size_zyx)}", wrong, f"use [{fitting}]")


def make_trainer(
    cfg: DictConfig, folder: RunFolder, loggers: Sequence[Any], callbacks: Sequence[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer with what this suite does itself (checkpoints, progress, sampling) switched off in it."""
    options, training = cfg.trainer, cfg.training
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # its handler saves inside the signal handler
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=list(options.devices) if isinstance(options.devices, ListConfig) else options.devices,
            num_nodes=options.num_nodes,
            strategy=_strategy(options),
            precision=_precision(options),
            deterministic=options.deterministic,
            benchmark=not options.deterministic,  # patches have one size: cuDNN may search for the fastest kernels
            sync_batchnorm=training.sync_batchnorm,
            max_steps=training.max_steps,
            max_epochs=-1,
            val_check_interval=training.validate_every,
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
    except (MisconfigurationException, ValueError) as error:
        raise BadInput("trainer", str(error).splitlines()[0], "--help shows the options") from error


def _strategy(options: DictConfig) -> Any:
    devices = options.devices
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count() if options.accelerator != "cpu" else 1
    elif isinstance(devices, str):
        devices = len([part for part in devices.split(",") if part.strip()]) if "," in devices else int(devices)
    elif not isinstance(devices, int):
        devices = len(devices)
    if devices * options.num_nodes <= 1:
        return "auto"
    return DDPStrategy(timeout=timedelta(minutes=options.collective_timeout_minutes), gradient_as_bucket_view=True)


def _precision(options: DictConfig) -> str:
    if options.precision != "auto":
        return options.precision
    if options.accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
