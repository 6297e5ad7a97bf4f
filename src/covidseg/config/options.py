"""Which options there are, read from the YAML files that define them: one that nobody reads is refused, not ignored.

Hydra refuses an unknown key unless it comes with a plus sign or in a file of this machine's own. Keys of a class
(`_target_`) are its arguments, which `build.instantiate` compares with its signature.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from covidseg.config.choices import did_you_mean
from covidseg.config.paths import CONF, EXPERIMENTS, own_configuration
from covidseg.config.plain import as_dict
from covidseg.system.errors import BadInput

_GLOBAL = "@package _global_"
_NAMES_BELOW = ("task.structures", "networks.published")  # mappings whose keys are names that a user gives
_INSTEAD = {  # what users of Lightning try first -> what it is called here
    "max_epochs": "training.max_steps is the length of a run: there are no epochs",
    "min_epochs": "training.max_steps is the length of a run: there are no epochs",
    "epochs": "training.max_steps is the length of a run: there are no epochs",
    "min_steps": "training.max_steps is the length of a run; callbacks=early_stopping ends it sooner",
    "patience": "callbacks=early_stopping callbacks.early_stopping.patience=...",
    "early_stopping": "callbacks=early_stopping",
    "learning_rate": "optimizer.lr=...",
    "lr": "optimizer.lr=...",
    "batch_size": "training.batch_size=...",
    "gpus": "trainer.devices=...",
    "gradient_clip_val": "training.gradient_clip=...",
    "val_check_interval": "training.validate_every=...",
    "check_val_every_n_epoch": "training.validate_every=..., in steps",
    "log_every_n_steps": "training.log_every=...",
    "sync_batchnorm": "training.sync_batchnorm=true",
    "fast_dev_run": "recipe=smoke",
    "limit_train_batches": "recipe=smoke, or training.max_steps=...",
    "callbacks": "callbacks=[early_stopping,lr_monitor,weight_averaging], or any of them",
    "logger": "logger=csv, wandb or wandb_offline",
    "ckpt_path": "a run goes on from its own folder: resume=auto",
    "resume_from_checkpoint": "a run goes on from its own folder: resume=auto",
    "num_workers": "training.loader_threads=...",
}


def refuse_unknown(config: DictConfig, command: str) -> None:
    """Raises `BadInput` for the first key of a composed configuration of conf/<command>.yaml that no file defines."""
    tree = as_dict(config, resolve=False)
    tree.pop("hydra", None)
    own = own_configuration()
    for option in _unknown(tree, _defined(command, own)):
        if option not in _meant_for_others(own):
            raise BadInput(option, "there is no such option", instead(option, command))


def instead(wanted: str, command: str) -> str:
    """What to write in place of an option that does not exist."""
    last = wanted.split(".")[-1]
    if command == "train" and last in _INSTEAD:
        return _INSTEAD[last]
    known = known_options(command)
    if wanted in known:  # a key of a group of which nothing is chosen
        return f"choose it first, as {wanted}={min(file.stem for file in (CONF / wanted).glob('*.yaml'))}"
    # The last part may be right and its path wrong: `max_steps` for `training.max_steps`.
    same_end = [option for option in known if option.split(".")[-1] == last][:1]
    hint = did_you_mean(wanted, known, cutoff=0.5) or "".join(f"did you mean {option}? " for option in same_end)
    return f"{hint}--help shows the options"


def known_options(command: str) -> list[str]:
    """All options of a command with their paths, those of every choice of its groups included."""
    return list(_dotted(_defined(command, own_configuration())))


def groups_of(command: str) -> list[str]:
    """The config groups and included files that a command offers."""
    return list(_entries(_load(CONF / f"{command}.yaml")))


def _unknown(node: Mapping[str, Any], known: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in node.items():
        here = f"{path}{key}"
        if key not in known:
            yield here
        elif isinstance(value, Mapping) and "_target_" not in value and here not in _NAMES_BELOW:
            yield from _unknown(value, known[key], f"{here}.")


def _dotted(known: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, below in known.items():
        yield f"{path}{key}"
        yield from _dotted(below, f"{path}{key}.")


@functools.lru_cache
def _defined(command: str, own: tuple[Path, ...]) -> dict[str, Any]:
    """The keys that the command's file and every choice of its groups define, as nested dicts."""
    tree: dict[str, Any] = {}
    primary = _load(CONF / f"{command}.yaml")
    _add(tree, primary)
    waiting = [_included(entry, "", "") for entry in _entries(primary)]
    while waiting:
        path, package = waiting.pop()
        for folder in (CONF, EXPERIMENTS.parent, *own):
            single = folder / f"{path}.yaml"
            for file in [single] if single.is_file() else (folder / path).glob("*.yaml"):
                text = file.read_text(encoding="utf-8")
                content, place = _parsed(text), "" if _GLOBAL in text else package
                _add(tree, content, place)
                group = file.parent.relative_to(folder).as_posix()
                waiting += [_included(entry, group, place) for entry in _entries(content) if "@" in entry]
    return tree


@functools.lru_cache
def _meant_for_others(own: tuple[Path, ...]) -> frozenset[str]:
    """What this machine's own files set for some command: every command reads them, and not each has the option."""
    conf, *named = own
    files = [*conf.glob("*.yaml"), *(file for folder in named for file in (folder / "local").glob("*.yaml"))]
    tree: dict[str, Any] = {}
    for file in files:
        _add(tree, _load(file))
    commands = {option for file in CONF.glob("*.yaml") for option in _dotted(_defined(file.stem, own))}
    return frozenset(_dotted(tree)) & commands


def _entries(content: Mapping[str, Any]) -> Iterator[str]:
    """The groups and files that a defaults list includes; what this machine's own file sets defines nothing."""
    for entry in content.get("defaults", []):
        name = (entry if isinstance(entry, str) else next(iter(entry))).removeprefix("optional ")
        if name not in ("_self_", "local") and not name.startswith("override "):
            yield name


def _included(entry: str, group: str, package: str) -> tuple[str, str]:
    """Folder or file of a defaults list's entry, and the dotted place of its keys."""
    path, at, place = entry.partition("@")
    if not at:
        place = path.replace("/", ".")
    elif place == "_here_":
        place = package
    else:
        place = f"{package}.{place}".lstrip(".")
    return f"{group}/{path}".lstrip("/"), place


def _add(tree: dict[str, Any], content: Mapping[str, Any], place: str = "") -> None:
    for part in filter(None, place.split(".")):
        tree = tree.setdefault(part, {})
    for key, value in content.items():
        if key in ("defaults", "hydra"):
            continue
        below = tree.setdefault(str(key), {})
        if isinstance(value, Mapping):
            _add(below, value)


def _load(file: Path) -> dict[str, Any]:
    return _parsed(file.read_text(encoding="utf-8"))


def _parsed(text: str) -> dict[str, Any]:
    return yaml.load(text, yaml.CSafeLoader) or {}


def switch(config: DictConfig, key: str, option: str = "") -> bool:
    """A value that is true or false; any other word, `no` among them, would count as true."""
    if not isinstance(config[key], bool):
        wrong = "is neither true nor false"
        raise BadInput(f"{option or key}={config[key]}", wrong, f"{option or key}=true or {option or key}=false")
    return config[key]
