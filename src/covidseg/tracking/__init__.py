"""Following a run: curves in its own folder always, Weights & Biases when asked for. Neither can change a training.

loggers = make_loggers(cfg, run_dir)
trainer = pl.Trainer(logger=loggers, callbacks=callbacks(cfg, run_dir))
...
finish(loggers, case_rows, metrics, status="finished")
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from covidseg.runs.checkpoints import weights_alone
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import read_json, write_json
from covidseg.system.readback import require_shape
from covidseg.system.scrub import scrub_text, scrubbed
from covidseg.tracking.callback import SaveCurves, ValidationOverlays, case_pictures
from covidseg.tracking.curves import CurvesCSV
from covidseg.tracking.wandb_run import WandbTracker, sync_command

__all__ = [
    "CurvesCSV",
    "ValidationOverlays",
    "WandbTracker",
    "callbacks",
    "case_pictures",
    "finish",
    "log_manifest",
    "log_sweep_summary",
    "make_loggers",
    "scrubbed",
    "sync_command",
]

SWEEP_VARIABLE = "COVIDSEG_SWEEP"  # set for the children of a sweep: the group that they share
_TRACKING = {"run_id": re.compile(r"[A-Za-z0-9_-]{1,64}")}
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}


def make_loggers(cfg: DictConfig, folder: Any) -> list[Logger]:
    """The loggers of a run: `metrics.csv` always, W&B where `cfg.logger.backend` says so, and then as the first one.

    So `trainer.logger.experiment` is the `wandb.Run`, as a callback written for Lightning takes it. `folder` is the
    run's path or its `RunFolder`. Made on every rank, they work on rank zero, and start on first use.
    """
    run_dir = Path(getattr(folder, "path", folder))
    trackers = [_tracker(cfg, run_dir)] if cfg.logger.backend == "wandb" else []
    return [*trackers, CurvesCSV(run_dir)]


def callbacks(cfg: DictConfig) -> list[pl.Callback]:
    """What goes into the Trainer with `make_loggers`."""
    if cfg.logger.backend != "wandb":
        return [SaveCurves()]
    return [SaveCurves(), ValidationOverlays(cfg.logger.overlays, class_names(cfg.task.structures))]


def class_names(structures: Mapping[str, Any]) -> dict[int, str]:
    """Class -> the smallest of the structures that it is a part of."""
    largest_first = sorted(structures.items(), key=lambda item: -len(item[1]["channels"]))
    return {int(channel): str(name) for name, part in largest_first for channel in part["channels"]}


def log_manifest(loggers: Sequence[Logger], manifest: Mapping[str, Any], folder: Any = None) -> None:
    """Add the manifest (commit, versions, devices, data hash, parameters) to the tracked config, scrubbed.

    The data set becomes an artifact that the run uses. With the run's `folder`, the address of the run is kept in its
    tracking.json.
    """
    for tracker in _trackers(loggers):
        facts = scrubbed(manifest)
        tracker.update_config({"manifest": facts})
        if data := facts.get("data"):
            counts = {key: facts[key] for key in ("cases", "protocol") if key in facts}
            tracker.use_data(f"{data['name']}-{data['hash']}", {**data, **counts})
        if tracker.address and folder is not None:
            path = Path(getattr(folder, "path", folder)) / "tracking.json"
            write_json(path, {**read_json(path), "url": tracker.address})


def finish(
    loggers: Sequence[Logger],
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    status: str,
    checkpoint: Path | None = None,
    pictures: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Log what a run ended with and close it, in bounded time.

    `pictures`: of held-out cases, as `case_pictures` makes them.
    `rows` are the lines of cases.csv and `metrics` the content of metrics.json, both empty if the run did not get
    there. `status` is `finished`, `failed` (so marked in W&B) or `interrupted` (preempted in W&B: it will go on). The
    weights of `checkpoint`, the one that `rows` are scores of, become an artifact. Prints the `wandb sync` line of an
    offline run.
    """
    for logger in loggers:
        logger.finalize("success" if status == "finished" else "failed")
    told = scrubbed(metrics)
    numbers = {name.removeprefix("sets/"): value for name, value in _flat(told)}
    for tracker in _trackers(loggers):
        tracker.summarise(numbers)
        tracker.log_table("cases", rows)
        if pictures:
            tracker.log_images(pictures)
        if checkpoint:
            try:
                # nested: W&B takes a hundred keys, and two structures on two sets have more
                tracker.log_artifact(weights_alone(checkpoint), checkpoint.name, told, [tracker.row])
            except CovidSegError as error:  # what cannot be tracked ends no run
                rank_zero_warn(f"{checkpoint.name} is not tracked: {error}")
        tracker.close(_EXIT_CODES[status], preempted=status == "interrupted")


def log_sweep_summary(
    options: Mapping[str, Any],
    group: str,
    rows: Sequence[Mapping[str, Any]],
    folder: Path | str,
    figures: Sequence[Path] = (),
) -> None:
    """A W&B run of its own that holds a sweep's table; a later call for the same `folder` updates it.

    `options` is the `logger` config group (nothing happens for another backend than wandb), `rows` the flat lines of
    the table, `figures` PNG files.
    """
    if options["backend"] != "wandb":
        return
    tracker = WandbTracker(
        dict(options) | {"group": group, "job_type": "summary"},
        folder,
        run_id=_run_id(Path(folder), f"{group}/summary") or "",
        identity=f"{group}/summary",
        tags=[group, "summary"],
        config={"table": group},
    )
    tracker.log_table("table", rows)
    tracker.log_figures({f"figures/{Path(figure).stem}": Path(figure) for figure in figures})
    tracker.close(0)


def _tracker(cfg: DictConfig, run_dir: Path) -> WandbTracker:
    table, row, task, seed = run_dir.parts[-4:]
    identity = f"{row}/{task}/{seed}"
    group = os.environ.get(SWEEP_VARIABLE) or cfg.logger.group
    config = {key: value for key, value in scrubbed(cfg).items() if key not in ("hydra", "logger")}
    return WandbTracker(
        dict(cfg.logger) | {"group": group},
        run_dir,
        run_id=_run_id(run_dir, f"{table}/{identity}", config) or "",  # the first process alone has one
        identity=identity,
        tags=[table, row, task, *seed.split("-"), *map(scrub_text, map(str, cfg.logger.tags))],
        config=config | {"table": table, "row": row},
    )


@rank_zero_only
def _run_id(folder: Path, identity: str, config: Mapping[str, Any] | None = None) -> str:
    """The folder's W&B id: made once from its identity, config and a nonce, and kept in tracking.json for resumed runs.

    Why the nonce: a run started over in an emptied folder, or by a colleague in the same project, has the same identity
    and config, and must not be appended to the other one's curves.
    """
    path = folder / "tracking.json"
    try:
        return require_shape(read_json(path), _TRACKING, path.name, "")["run_id"]
    except (OSError, ValueError, BadInput):
        made_of = json.dumps([identity, config, uuid.uuid4().hex], sort_keys=True, default=str)
        run_id = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        write_json(path, {"identity": identity, "run_id": run_id})
        return run_id


def _trackers(loggers: Sequence[Logger]) -> list[WandbTracker]:
    return [logger for logger in loggers if isinstance(logger, WandbTracker)]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
