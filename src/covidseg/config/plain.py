"""A composed configuration as plain containers, for what does not know OmegaConf."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def as_dict(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A section of a configuration as dicts and lists, its interpolations resolved unless told otherwise."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def load_yaml(file: Path) -> DictConfig:
    """A YAML file of the suite's own, which holds a mapping."""
    return cast(DictConfig, OmegaConf.load(file))
