"""What a Hydra sweeper needs of a run: a folder for each of its trials, and the score that it looks for."""

import hashlib
import re
from collections.abc import Collection, Sequence
from statistics import mean

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from covidseg.runs.folder import RunFolder, model_name, run_dir
from covidseg.sweep.folds import Job, names_fold, without_fold
from covidseg.sweep.rows import key_of, starts_the_run

_IN_THE_PATH = ("name", "row", "task", "seed", "fold", "model")
_LONGEST = 100  # characters of a folder's name


def named_by_overrides(jobs: Sequence[Job], given: Collection[str]) -> list[Job]:
    """The jobs, (overrides, composed config), each of which has a folder of its own below its model's name.

    A sweeper that tries one value after the other cannot know that the next trial's folder would be the same. `given`:
    the overrides of the command line; what a job has beyond those is what its sweeper chose. A job that names its row
    itself is left alone.
    """
    known = {*given, *_as_a_sweeper_writes(given)}
    return [(overrides, cfg) if cfg.row is not None else _named(overrides, cfg, known) for overrides, cfg in jobs]


def scores(jobs: Sequence[Job], made: Sequence[Job]) -> list[float | None]:
    """The validation Dice of each job, mean over the folds that it was `made` into; None where one has none."""
    found: list[float | None] = []
    for overrides, _ in jobs:
        folders = [RunFolder(run_dir(cfg)) for own, cfg in made if _comes_from(own, overrides)]
        dice = [score for folder in folders if (score := folder.validation_dice) is not None]
        found.append(mean(dice) if dice and len(dice) == len(folders) else None)
    return found


def _named(overrides: list[str], cfg: DictConfig, given: Collection[str]) -> Job:
    beyond = [own for own in overrides if own not in given]
    chosen = [own for own in beyond if not (starts_the_run(own) or _is_in_the_path(own))]
    if not chosen:
        return overrides, cfg
    told = [re.sub(r"[^A-Za-z0-9._]+", "-", override.lstrip("+")).strip("-") for override in chosen]
    name = "-".join([model_name(cfg.model), *told])
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    named = cfg.copy()
    named.row = name
    return [*overrides, f"row={name}"], named


def _as_a_sweeper_writes(given: Collection[str]) -> list[str]:
    """The single values of the command line in a sweeper's own spelling, in which `true` is `True`."""
    parsed = [OverridesParser.create().parse_override(override) for override in given]
    single = [override for override in parsed if not override.is_sweep_override() and not override.is_delete()]
    return [f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in single]


def _is_in_the_path(override: str) -> bool:
    key = key_of(override)
    return key in _IN_THE_PATH or key.startswith(("model/", "experiments/"))


def _comes_from(made: list[str], overrides: list[str]) -> bool:
    return made == overrides or (not names_fold(overrides) and without_fold(made) == without_fold(overrides))
