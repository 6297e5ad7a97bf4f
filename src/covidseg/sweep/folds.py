"""A sweep over data without a test set is cross-validated: one job for each fold. No torch: the driver imports this."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from covidseg.config.plain import as_dict
from covidseg.sweep.rows import key_of
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault

Job = tuple[list[str], DictConfig]


def cross_validated(jobs: Sequence[Job], say: Callable[[str], None]) -> list[Job]:
    """The jobs, (overrides, composed config); each that would be scored on nothing once for each fold of its data.

    A job that names its fold is left alone. What is divided how is asked once for each data configuration, of a process
    of its own; `say` gets a line about each that is cross-validated. Raises what that process found wrong: it would be
    wrong with every run.
    """
    asked: dict[str, dict[tuple[str, ...], None]] = {}
    keys = [_question(cfg) for _, cfg in jobs]
    for data, structures in filter(None, keys):
        asked.setdefault(data, {})[structures] = None
    folds = _answers(asked)
    told: dict[str, int] = {}
    made: list[Job] = []
    for (overrides, cfg), key in zip(jobs, keys, strict=True):
        found = folds.get(key) if key else None
        if found is None:
            made.append((overrides, cfg))
            continue
        made += [(_with_fold(overrides, fold), _in_fold(cfg, fold)) for fold in found]
        told[cfg.data.name] = max(told.get(cfg.data.name, 0), len(found))
    for name, count in told.items():
        say(f"{name} has no test set: cross-validated, {count} folds of each row")
    return made


def _question(cfg: DictConfig) -> tuple[str, tuple[str, ...]] | None:
    """(data configuration, structures) of a job whose test set is in doubt.

    None where nothing is asked for: a fold is given, or a test set is drawn, so that no scan need be listed.
    """
    if "data" not in cfg or cfg.fold is not None:
        return None
    data = as_dict(cfg.data)
    if data["splits"]["test_fraction"] and not data["prepared"]:
        return None
    return json.dumps(data, sort_keys=True), tuple(sorted(cfg.task.structures))


def _answers(
    asked: dict[str, dict[tuple[str, ...], None]],
) -> dict[tuple[str, tuple[str, ...]], list[int] | None]:
    """(data configuration, structures) -> the folds to run, None where there is a set to be scored on."""
    if not asked:
        return {}
    question = [[json.loads(data), list(map(list, tasks))] for data, tasks in asked.items()]
    done = subprocess.run(
        [sys.executable, "-m", "covidseg.sweep.divisions"], input=json.dumps(question), capture_output=True, text=True
    )
    try:
        replies = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or ["no answer"]
        raise CovidSegError("sweep", f"how the data are divided cannot be told ({lines[-1]})", "debug=true") from None
    answers: dict[tuple[str, tuple[str, ...]], list[int] | None] = {}
    for (data, tasks), reply in zip(asked.items(), replies, strict=True):
        if "error" in reply:
            kind = EnvironmentFault if reply["environment"] else BadInput
            raise kind(*reply["error"])
        answers |= {(data, structures): folds for structures, folds in zip(tasks, reply["folds"], strict=True)}
    return answers


def without_fold(overrides: Sequence[str]) -> list[str]:
    """The overrides but for `fold=`."""
    return [override for override in overrides if key_of(override) != "fold"]


def names_fold(overrides: Sequence[str]) -> bool:
    """Whether one of the overrides chooses a fold."""
    return any(re.fullmatch(r"\+{0,2}fold=(?!null$).+", override) for override in overrides)


def _with_fold(overrides: Sequence[str], fold: int) -> list[str]:
    return [*without_fold(overrides), f"fold={fold}"]


def _in_fold(cfg: DictConfig, fold: int) -> DictConfig:
    copied = cfg.copy()
    copied.fold = fold
    return copied
