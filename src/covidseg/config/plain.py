"""A composed configuration as plain containers, for what does not know OmegaConf."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf


def as_dict(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A section of a configuration as dicts and lists, its interpolations resolved unless told otherwise."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping, below a mapping; an empty one is a value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def expand_home(config: DictConfig | ListConfig) -> None:
    """Replace a leading `~` of every text in a configuration by the home folder, in place.

    A shell does so only where the word begins with it, and not in `output=~/masks`. An unknown user's `~` stays.
    """
    keys: Iterable[Any] = config.keys() if isinstance(config, DictConfig) else range(len(config))
    for key in keys:
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        value = config[key]
        if OmegaConf.is_config(value):
            expand_home(value)
        elif isinstance(value, str) and value.startswith("~"):
            config[key] = os.path.expanduser(value)


def load_yaml(file: Path) -> DictConfig:
    """A YAML file of the suite's own, which holds a mapping."""
    return cast(DictConfig, OmegaConf.load(file))
