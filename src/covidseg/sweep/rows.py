"""One row of a sweep: the run that a list of overrides stands for, and what its folder says about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from covidseg.config.plain import as_dict
from covidseg.runs.folder import NOT_SCORED, UNSCORED, RunFolder, asked_resources, config_hash, run_dir
from covidseg.sweep.scoring import Scoring
from covidseg.system.errors import BadInput

# How a run was started is no part of the run: a row's config, and so its hash, is that of the same single run.
_NOT_THE_RUNS = ("hydra", "hydra/", "hydra.", "launcher", "sweep")


CLASH = "the folder holds a run of another configuration: choose another name= or row=, or remove it"


class State(StrEnum):
    """Where a row stands; DONE is the only one that needs nothing more."""

    WAITING = "waiting"
    QUEUED = "queued"  # a cluster has it
    RUNNING = "running"
    ELSEWHERE = "running elsewhere"  # another process holds the run's lock
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # resumes the next time


@dataclass
class Row:
    """A run to be made. Its folder follows from its config and not from a job number: any sweep finds it again."""

    overrides: list[str]
    folder: RunFolder
    name: str  # the folder below `runs`: table2/fv/lesion/seed0
    hash: str
    devices: int  # per node; -1 for all, until the pool puts its number
    nodes: int
    max_steps: int
    batch_size: int  # per process and step
    model: dict[str, Any]
    patch_size_zyx: list[int]
    asked: dict[str, Any] = field(default_factory=dict)  # effective batch and precision, where it names them
    scoring: Scoring | None = None
    cost: float = 1.0  # expected seconds, or in proportion to them
    around: float = 0.0  # of these what is no training: starting, validation, evaluation
    state: State = State.WAITING
    reason: str = ""
    placed_on: list[str] = field(default_factory=list)
    started: float = 0.0  # epoch seconds of this sweep's attempt
    seconds: float = 0.0  # wall time of that attempt

    @classmethod
    def plan(cls, overrides: list[str], cfg: DictConfig) -> "Row":
        """The row of a composed job config. Raises BadInput where `trainer.devices` cannot be given out by a pool."""
        path = run_dir(cfg)
        training = cfg.training
        return cls(
            overrides=[override for override in overrides if not starts_the_run(override)],
            folder=RunFolder(path),
            name=Path(path).relative_to(cfg.paths.runs).as_posix(),
            hash=config_hash(cfg),
            devices=_count(cfg.trainer.devices),
            nodes=_whole("trainer.num_nodes", cfg.trainer.num_nodes),
            max_steps=_whole("training.max_steps", training.max_steps),
            batch_size=_whole("training.batch_size", training.batch_size)
            * _whole("trainer.accumulate_grad_batches", cfg.trainer.get("accumulate_grad_batches", 1)),
            model=as_dict(cfg.model),
            patch_size_zyx=[_whole("training.patch_size_zyx", n) for n in _listed(training.patch_size_zyx)],
            asked=asked_resources(cfg),
            scoring=Scoring.of(cfg),
        )

    def judge(self, retry_failed: bool = False) -> None:
        """Set `state` and `reason` from what lies in the run's folder, before anything is started."""
        self.state, self.reason = judged(self.folder, self.hash, retry_failed, self.asked)

    @property
    def patches_per_step(self) -> int:
        """Over all processes of the run."""
        return self.batch_size * self.devices * self.nodes

    def wrote_status(self) -> bool:
        """Whether this sweep's attempt got as far as to write `status.json`."""
        path = self.folder.path / "status.json"
        return path.exists() and path.stat().st_mtime >= self.started

    @property
    def resumes(self) -> bool:
        """Whether steps of this run lie in its folder already."""
        return bool((self.folder.status or {}).get("step"))


def judged(
    folder: RunFolder, wanted_hash: str, retry_failed: bool = False, asked: Mapping[str, Any] | None = None
) -> tuple[State, str]:
    """What a folder says of the run with this config hash, and why; `retry_failed`: a failed one may start again.

    `asked`: the effective batch and precision that the run is asked with, as `asked_resources` gives them.
    """
    status = folder.status or {}
    try:
        of_another = folder.config_hash not in (None, wanted_hash)
    except BadInput as error:
        return State.FAILED, str(error)
    if of_another and folder.holds_work:
        return State.FAILED, CLASH
    if clash := folder.other_resources(asked or {}):
        return State.FAILED, str(clash)
    if folder.is_finished:
        return State.DONE, NOT_SCORED if folder.asks_for_no_score else ""
    if folder.is_locked():
        return State.ELSEWHERE, f"process {status.get('pid', '?')}"
    if status.get("state") == "failed" and not retry_failed and not of_another:
        return State.FAILED, status.get("reason") or "no reason was left"
    if folder.is_unscored and not retry_failed:
        return State.FAILED, UNSCORED
    return State.WAITING, ""


def key_of(override: str) -> str:
    """The option that an override sets, as `data` of `+data=folder`."""
    return override.lstrip("+").split("=", 1)[0]


def starts_the_run(override: str) -> bool:
    """Whether an override says how runs are started, and nothing about the run."""
    key = key_of(override.lstrip("+~")).split("@", 1)[0]
    return key in _NOT_THE_RUNS or key.startswith(("hydra.", "hydra/"))


def _whole(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{option}={value}", "is no whole number", "correct it")
    return value


def _listed(sizes: object) -> list[object]:
    if not isinstance(sizes, ListConfig):
        raise BadInput(f"training.patch_size_zyx={sizes}", "is no list", "give [z,y,x]")
    return list(sizes)


def _count(devices: object) -> int:
    """How many devices `trainer.devices` asks for; -1 for all there are."""
    if devices == "auto":
        return -1
    try:
        count = int(str(devices))
    except ValueError:
        raise BadInput(
            "trainer.devices", f"{devices} names devices, which a sweep gives out itself", "write how many a run takes"
        ) from None
    if count < -1 or count == 0:
        raise BadInput("trainer.devices", f"{count} is no number of devices", "1 or more, or -1 for all of the pool")
    return count
