"""From configuration to objects: networks by name for Python users, `instantiate` for whatever YAML describes.

A configuration may come with a downloaded run, so it is data. What it may name are the classes that the suite's own
YAML files name, each in its own group: `model` takes what conf/model/**.yaml takes. Nothing else is ever imported or
called. Further classes come from YAML files of this machine alone: conf/local, and the folder that COVIDSEG_CONF names.
Hydra's own `instantiate` has a list of what is forbidden instead, which is no boundary.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from covidseg.config.choices import did_you_mean
from covidseg.config.paths import CONF, own_configuration
from covidseg.config.plain import load_yaml
from covidseg.system.errors import BadInput

if TYPE_CHECKING:  # the sweep's driver and prepare.py do without torch
    from torch import nn

_TARGET = re.compile(r"""^[ \t]*["']?_target_["']?:[ \t]*["']?([A-Za-z_][\w.]*)""", re.MULTILINE)

Slot = str | Callable[[int], Any]


def build_network(name: str, variation: Slot | None = None, pyramid: Slot | None = None, **options: Any) -> "nn.Module":
    """The network of `conf/model/<name>.yaml`, the same one that `python src/train.py model=<name>` trains.

    `variation` and `pyramid`: a file name of `conf/model/variation` and `conf/model/pyramid` ("none" for an empty
    slot), or a constructor called with the channel count; left out, the network's own default. `options`: any key of
    the network's YAML file, e.g. `width=32`; a nested one as `**{"variation.contrast.kernel_size": 1}`. Raises
    `BadInput` for a name, a slot or an option that does not exist, and for a value that the network refuses.
    """
    asked = {slot: block for slot, block in (("variation", variation), ("pyramid", pyramid)) if block is not None}
    own = {slot: block for slot, block in asked.items() if not isinstance(block, str)}
    config = _compose("model", name, {slot: block for slot, block in asked.items() if isinstance(block, str)})
    for slot in asked:
        if slot not in config:
            raise BadInput(slot, f"{name} has no such slot", f"networks with it: {', '.join(_networks_with(slot))}")
    for key, value in options.items():
        if (slot := key.partition(".")[0]) in own:
            raise BadInput(key, f"does not reach a {slot} of your own", "give its arguments to functools.partial")
        _check_option(name, config, key)
        try:
            OmegaConf.update(config, key, value.item() if isinstance(value, np.generic) else value, merge=True)
        except OmegaConfBaseException as error:
            raise BadInput(f"{key}={value!r}", "is no value of an option", "a number, true, false or text") from error
    return instantiate(config, "model", **own)


def instantiate(config: Mapping[str, Any], group: str, at: str = "", /, **arguments: Any) -> Any:
    """The object that `config` describes: the class `_target_` called with the other keys, inner objects first.

    `group`: the config group that it belongs to, whose YAML files say which classes there are. `at`: how an error names
    the place of the configuration's keys, as `data.source.`. `_partial_: true` gives
    `functools.partial` of the class. `arguments` come on top of the configuration's own. Raises `BadInput` when the
    group has no such class, when the class has no such argument, when a value is of another kind than the argument's
    default, or when the class refuses it.
    """
    tree = config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))
    plain = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True, throw_on_missing=True))
    if "_target_" not in plain:
        raise BadInput(group, "its configuration names no class", f"choose one of conf/{group}")
    try:
        return _make(plain, group, arguments, at)
    except ValueError as error:
        raise BadInput(plain["_target_"], str(error)) from error
    except (TypeError, OverflowError, RuntimeError) as error:
        raise BadInput(at.rstrip(".") or group, " ".join(str(error).split()), "--help shows the options") from error


def _make(node: Any, group: str, more: Mapping[str, Any] | None = None, path: str = "") -> Any:
    """`path` names the node's place in the configuration: "", "variation.", "variation.contrast."."""
    if isinstance(node, list):
        return [_make(item, group, path=path) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {
        key: _make(value, group, path=f"{path}{key}.")
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    for key in arguments:
        if str(key).startswith("_"):
            raise BadInput(key, "is no key of a configuration", "only _target_ and _partial_ start with an underscore")
    if "_target_" not in node:
        return arguments
    target = _admitted(node["_target_"], group)
    parameters = inspect.signature(target).parameters
    for key, value in arguments.items():
        if key in parameters:
            _check_kind(f"{path}{key}", value, parameters[key].default)
    arguments.update(more or {})
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise BadInput(f"{path}{key}", f"{target.__name__} has no such argument", _nearest(key, parameters))
    return functools.partial(target, **arguments) if node.get("_partial_", False) else target(**arguments)


def _check_kind(option: str, value: Any, default: Any) -> None:
    """Refuse what Hydra makes of `off`, `no` or `'3'`: text. Any text is true to Python, which would build another
    network without a word; and `true` is its 1.
    """
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise BadInput(f"{option}={value!r}", "is not of the right kind", "true or false")
    elif isinstance(default, int | float) and isinstance(value, bool | str):
        raise BadInput(f"{option}={value!r}", "is not of the right kind", "a number, without quotes")


def admitted(group: str) -> frozenset[str]:
    """The classes that a configuration of the group may name: those that its YAML files name."""
    folders = (CONF, *own_configuration())
    files = [file for folder in folders for file in (folder / group).rglob("*.yaml")]
    return frozenset(name for file in files for name in _TARGET.findall(file.read_text(encoding="utf-8")))


def _admitted(name: Any, group: str) -> type:
    """The class of that name, imported only once it is known to be on the list."""
    module, _, attribute = str(name).rpartition(".")
    if isinstance(name, str) and name in admitted(group):
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ModuleNotFoundError as error:
            raise BadInput(name, f"cannot be imported ({error})", "install its package, or correct the name") from None
        if isinstance(found, type):
            return found
    remedy = f"conf/{group} holds those that there are; your own need a YAML file in conf/local/{group}"
    raise BadInput(name, f"is no class that a configuration of {group} may name", remedy)


def _compose(group: str, name: str, chosen: Mapping[str, str]) -> DictConfig:
    """`conf/<group>/<name>.yaml` with its defaults list followed as Hydra does, `chosen` taking the place of
    defaults.
    """
    files = _choices(group)
    if name not in files:
        raise BadInput(f"{group}={name}", "there is no such choice", _nearest(name, files))
    config = load_yaml(files[name])
    parts = []
    for entry in config.pop("defaults", ["_self_"]):
        if entry == "_self_":
            parts.append(config)
        elif isinstance(entry, str):
            parts.append(_compose(group, entry, {}))
        else:
            ((slot, default),) = entry.items()
            parts.append(OmegaConf.create({slot: _compose(f"{group}/{slot}", chosen.get(slot, default), {})}))
    return cast(DictConfig, OmegaConf.merge(*parts))


def _choices(group: str) -> dict[str, Path]:
    """Name -> file of a config group's choices; the suite's own come first, as in Hydra's search path."""
    folders = (CONF, *own_configuration())
    files = [file for folder in folders[::-1] for file in sorted((folder / group).glob("*.yaml"))]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def _networks_with(slot: str) -> list[str]:
    return [name for name in _choices("model") if slot in _compose("model", name, {})]


def _check_option(name: str, config: DictConfig, key: str) -> None:
    """Refuse a dotted key that `config` does not have. `OmegaConf.update` would too, and leave a part of it behind."""
    level: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts, start=1):
        if part not in level or not (depth == len(parts) or isinstance(level[part], DictConfig)):
            known = [option for option in level if not option.startswith("_")]
            raise BadInput(key, f"{name} has no such option", _nearest(part, known))
        level = level[part]


def _nearest(wanted: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(wanted, known) + (f"one of {', '.join(known)}" if known else "there is none")
