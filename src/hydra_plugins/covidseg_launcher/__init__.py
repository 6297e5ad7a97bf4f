"""Hydra launchers `pool` and `slurm`: one fresh process per run of a multirun.

Hydra's own launcher runs a multirun's jobs one after the other in one interpreter. With Lightning's DDP each rank then
repeats the whole multirun, and jobs of different `trainer.devices` train on a part of their data without a word. Hydra
imports this module at the start of every program: keep torch out of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, open_dict


@dataclass
class SweepOptions:
    """What every sweep has. The values, with what they mean, are in conf/launcher/*.yaml."""

    _target_: str = MISSING
    retry_failed: bool = MISSING
    grace_seconds: float = MISSING
    report: bool = MISSING


@dataclass
class PoolOptions(SweepOptions):
    """conf/launcher/pool.yaml"""

    _target_: str = "hydra_plugins.covidseg_launcher.PoolLauncher"
    devices: Any = MISSING
    slots: Any = MISSING
    per_device: Any = MISSING


@dataclass
class SlurmOptions(SweepOptions):
    """conf/launcher/slurm.yaml"""

    _target_: str = "hydra_plugins.covidseg_launcher.SlurmLauncher"
    partition: str | None = MISSING
    account: str | None = MISSING
    time: str = MISSING
    cpus_per_task: int = MISSING
    mem: str | None = MISSING
    gres: str | None = MISSING
    extra: list[str] = MISSING
    setup: list[str] = MISSING
    signal_seconds: int = MISSING
    poll_seconds: float = MISSING
    unreachable_seconds: float = MISSING
    max_jobs: int = MISSING
    wrap: str | None = MISSING
    stage: str | None = MISSING
    array: bool = MISSING
    detach: bool = MISSING


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolOptions, provider="covidseg")
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmOptions, provider="covidseg")


_MANY = 50  # runs whose planning takes seconds


class _SweepLauncher(Launcher):
    def __init__(self, retry_failed: bool, grace_seconds: float, report: bool, **options: Any):
        self.common = {"retry_failed": retry_failed, "grace_seconds": grace_seconds, "report": report}
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from covidseg.sweep.composing import Composer

        self.config, self.composer = config, Composer(hydra_context.config_loader, self._check)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. Raises CovidSegError while any is unfinished."""
        from covidseg.sweep.folds import cross_validated
        from covidseg.sweep.launch import launch, plan
        from covidseg.sweep.trials import named_by_overrides, scores

        setup_globals()
        _mask_secrets(Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        if len(job_overrides) > _MANY:
            print(f"planning {len(job_overrides)} runs")
        jobs = [(list(overrides), self.composer.compose(self.config, overrides)) for overrides in job_overrides]
        jobs = named_by_overrides(jobs, self.config.hydra.overrides.task)
        made = cross_validated(jobs, print)
        rows = plan(made)
        with open_dict(self.config):
            launch(rows, self.executor(rows, jobs[0][1]), self.config, **self.common)
        return [
            JobReturn(overrides=overrides, cfg=cfg, status=JobStatus.COMPLETED, _return_value=score)
            for (overrides, cfg), score in zip(jobs, scores(jobs, made), strict=True)
        ]

    def _check(self, cfg: DictConfig) -> None:
        """Refuse options that are not in the shipped configuration; another application has its own."""
        from covidseg.config.options import refuse_unknown
        from covidseg.config.paths import CONF

        if {"provider": "main", "path": str(CONF), "schema": "file"} in self.config.hydra.runtime.config_sources:
            refuse_unknown(cfg, self.config.hydra.job.config_name)

    def executor(self, rows: Sequence[Any], cfg: DictConfig) -> Any:
        """Where the rows run."""
        raise NotImplementedError


def _mask_secrets(record: Path) -> None:
    """In what Hydra's sweeper wrote down of the command before it called the launcher."""
    from covidseg.system.files import write_text
    from covidseg.system.scrub import without_secrets

    if record.is_file():
        write_text(record, without_secrets(record.read_text(encoding="utf-8")))


class PoolLauncher(_SweepLauncher):
    """Each run on the next free device(s) of this machine."""

    def executor(self, rows: Sequence[Any], cfg: DictConfig) -> Any:
        from covidseg.sweep.launch import group_of
        from covidseg.sweep.pool import LocalPool, find_devices, require_per_device

        options = dict(self.options)
        per_device = require_per_device(options.pop("per_device"))
        ids, on_gpu = find_devices(**options, on_cpu=cfg.trainer.accelerator == "cpu")
        return LocalPool(ids, on_gpu, group_of(rows), per_device)


class SlurmLauncher(_SweepLauncher):
    """Each run a job of the cluster."""

    def executor(self, rows: Sequence[Any], cfg: DictConfig) -> Any:
        from covidseg.sweep.launch import group_of
        from covidseg.sweep.slurm import Cluster, ClusterOptions

        arrays = Path(self.config.hydra.sweep.dir) / "arrays"
        return Cluster(ClusterOptions(**self.options), group_of(rows), arrays)
