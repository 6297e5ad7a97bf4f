"""Makes `experiments/` beside `conf/` a Hydra config group, and finds this machine's own YAML files (conf/local,
COVIDSEG_CONF) by the names of their groups. Hydra imports this at start: keep torch out of it.

Putting their common parent on Hydra's search path would do that too, and make `--help` walk the whole checkout, its
environment and its data. This source knows one folder.
"""

from pathlib import PurePosixPath

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from covidseg.config.paths import EXPERIMENTS, own_configuration


class ExperimentsSource(FileConfigSource):
    """The files below `experiments/` under their group names: `experiments/table2/ceb`."""

    @staticmethod
    def scheme() -> str:
        return EXPERIMENTS.name

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(_below(config_path))

    def available(self) -> bool:
        return EXPERIMENTS.is_dir()

    def is_group(self, config_path: str) -> bool:
        return not config_path or (_is_ours(config_path) and super().is_group(_below(config_path)))

    def is_config(self, config_path: str) -> bool:
        return _is_ours(config_path) and super().is_config(_below(config_path))

    def _list_add_result(
        self, files: list[str], file_path: str, file_name: str, results_filter: ObjectType | None
    ) -> None:
        super()._list_add_result(files, f"{EXPERIMENTS.name}/{file_path}", file_name, results_filter)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if not config_path:
            return [] if results_filter is ObjectType.CONFIG else [EXPERIMENTS.name]
        return super().list(_below(config_path), results_filter)


class ExperimentsSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="covidseg", path=f"{ExperimentsSource.scheme()}://{EXPERIMENTS}")
        for folder in own_configuration():
            if folder.is_dir():
                search_path.append(provider="own", path=f"file://{folder}")


def _is_ours(config_path: str) -> bool:
    return PurePosixPath(config_path).parts[:1] == (EXPERIMENTS.name,)


def _below(config_path: str) -> str:
    return str(PurePosixPath(*PurePosixPath(config_path).parts[1:]))
