"""The configurations of a sweep's runs, each composed once: Hydra composes every one twice, a tenth of a second each.

Runs that differ in their seed or fold alone are one composition, copied, with the number set: Hydra applies overrides
of values behind the composition, too. So 180 runs of ten rows, two tasks and nine seeds are twenty compositions.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict


class Composer:
    """Stands before a config loader's `load_sweep_config`, in the sweeper's check of the whole batch as well."""

    def __init__(self, loader: Any, check: Callable[[DictConfig], None]):
        """`check` sees each composition, and raises where it cannot be meant."""
        self._load, self._check = loader.load_sweep_config, check
        self._parser = OverridesParser.create(loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._checked: set[int] = set()
        loader.load_sweep_config = self._shared

    def compose(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """The job's own configuration, without Hydra's."""
        shared = self._shared(master, overrides)
        if id(shared) not in self._checked:
            self._check(shared)
            self._checked.add(id(shared))
        made = shared.copy()
        for override in filter(_sets_a_number, overrides):
            made[override.split("=", 1)[0]] = self._parser.parse_override(override).value()
        return made

    def _shared(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """What all jobs of these overrides but for seed and fold have in common; not to be changed."""
        key = tuple(override for override in sweep_overrides if not _sets_a_number(override))
        if key not in self._composed:
            composed = self._load(master_config, list(key))
            with open_dict(composed):
                composed.pop("hydra", None)
            self._composed[key] = composed
        return self._composed[key]


def _sets_a_number(override: str) -> bool:
    return override.startswith(("seed=", "fold="))
