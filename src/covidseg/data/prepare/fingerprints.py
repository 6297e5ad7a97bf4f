"""Hashes of source files, remembered by size and times of change, so that opening a prepared data set again is fast."""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from covidseg.scans.gate.names import kind, listing, read_faults
from covidseg.system.digests import digest
from covidseg.system.errors import CovidSegError, EnvironmentFault
from covidseg.system.files import atomic_path, read_json, sha256


class Fingerprints:
    """sha256 of files and of folders (a DICOM series: names and contents), remembered in one private file.

    The memory holds full paths, so only its owner may read it.
    """

    def __init__(self, memory: Path):
        self._memory = memory
        try:
            self._known: dict[str, list] = read_json(memory)
        except (OSError, ValueError):
            self._known = {}

    def of(self, paths: Iterable[Path]) -> dict[Path, str | CovidSegError]:
        """Path -> sha256, or why it cannot be read; files whose size and times are known are not read again."""
        paths = list(dict.fromkeys(paths))
        before = dict(self._known)
        with ThreadPoolExecutor() as threads:
            result = dict(zip(paths, threads.map(self._path, paths), strict=True))
        if self._known != before:
            self._remember()
        return result

    def _path(self, path: Path) -> str | CovidSegError:
        try:
            if kind(path) == "folder":
                return digest([[name, self._file(file)] for name, file in _files(path)])
            return self._file(path)
        except CovidSegError as error:
            return error

    def _file(self, path: Path) -> str:
        with read_faults(path):
            state = path.stat()
            key, stamp = str(path.resolve()), [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
            known = self._known.get(key)
            if known is None or known[:-1] != stamp:
                known = self._known[key] = [*stamp, sha256(path)]
        return known[-1]

    def _remember(self) -> None:
        with suppress(EnvironmentFault):  # a read-only disk only costs time
            with atomic_path(self._memory) as temporary:
                temporary.write_text(json.dumps(self._known))
            os.chmod(self._memory, 0o600)


def _files(folder: Path, below: str = "") -> Iterator[tuple[str, Path]]:
    """(path below the folder, file) of every file in it, at any depth; links to folders may lead in a circle."""
    for path in listing(folder):
        if path.is_file():
            yield f"{below}{path.name}", path
        elif path.is_dir() and not path.is_symlink():
            yield from _files(path, f"{below}{path.name}/")
