"""Reading a prepared data set: memory-mapped arrays and what describes them, without SimpleITK and the raw scans."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from covidseg.data.grid import Grid
from covidseg.data.splits import ALL
from covidseg.errors import BadInput
from covidseg.files import read_json, sha256

FORMAT = 1  # of the folder; another one is another folder
MARKER = ".covidseg-prepared"  # a folder without it is not ours, and nothing in it is touched
ARRAYS = ("image.npy", "mask.npy", "reference.npz")
LABELS = {"lung": 1, "lesion": 2}  # of every stored label map; 0 is background
REBUILD = "run src/prepare.py with the same options again: it rebuilds what is damaged and keeps the rest"


@dataclass(frozen=True)
class Split:
    """Case ids of one division of a data set; no patient is on two sides."""

    train: list[str]
    validation: list[str]
    test: list[str]
    external: list[str]


@dataclass(frozen=True)
class PreparedCase:
    """One case. Arrays are opened on first use, and checked then against the hashes taken when they were written."""

    folder: Path
    id: str
    patient: str
    site: str
    annotated: tuple[str, ...]
    digest: str  # sha256 of case.json, which holds those of the arrays

    @cached_property
    def image(self) -> np.ndarray:
        """int16 HU (z, y, x) on `grid`, memory-mapped, read-only."""
        return np.load(self._checked("image.npy"), mmap_mode="r")

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 label map (z, y, x) on `grid`, memory-mapped, read-only."""
        return np.load(self._checked("mask.npy"), mmap_mode="r")

    def reference(self) -> np.ndarray:
        """uint8 label map (z, y, x) on the scan's own grid, in its own array order: what predictions are scored on."""
        with np.load(self._checked("reference.npz")) as archive:
            return archive["labels"]

    @cached_property
    def grid(self) -> Grid:
        """How the prepared arrays relate to the scan."""
        return Grid.from_dict(self.info["grid"])

    @cached_property
    def foreground(self) -> dict[str, np.ndarray]:
        """Up to a fixed number of seeded voxels of "lung" (lesion-free) and "lesion": (N, 3) int32 z, y, x."""
        return {name: np.array(self.info["foreground"][name], np.int32).reshape(-1, 3) for name in LABELS}

    @cached_property
    def info(self) -> dict[str, Any]:
        """case.json: sources and their hashes, grid, checks, notes, voxel counts."""
        try:
            content = (self.folder / "case.json").read_bytes()
        except FileNotFoundError:
            raise BadInput(f"case {self.id}", "case.json is missing", REBUILD) from None
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise BadInput(f"case {self.id}", "case.json does not match its checksum", REBUILD)
        return json.loads(content)

    def verify(self) -> None:
        """Compare every file with its checksum; raises `BadInput` naming the case and the file."""
        for name in ARRAYS:
            self._checked(name)

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise BadInput(f"case {self.id}", f"{name} is missing", REBUILD)
        if sha256(path) != self.info["sha256"][name]:
            raise BadInput(f"case {self.id}", f"{name} does not match its checksum", REBUILD)
        return path


@dataclass(frozen=True)
class PreparedDataset:
    """A folder that `prepare` finished."""

    folder: Path
    name: str
    hash: str
    spacing_zyx: tuple[float, float, float]
    cases: Mapping[str, PreparedCase]
    splits: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read the description of a prepared folder; arrays stay closed until they are used.

        Raises `BadInput` where the folder is unfinished, of another format or not a prepared data set at all.
        """
        folder = Path(folder)
        index, splits = _read_index(folder)
        cases = {
            row["id"]: PreparedCase(
                folder / row["id"], row["id"], row["patient"], row["site"], tuple(row["annotated"]), row["sha256"]
            )
            for row in index["cases"]
        }
        return cls(folder, index["name"], index["hash"], tuple(index["spacing_zyx"]), cases, splits)

    def split(self, fold: int | str | None = None, choosing: bool = False) -> Split:
        """The fixed division (`fold=None`), that of one fold, counted from 0, or every case for training ("all").

        A published fold is trained on as it was published; `choosing`: less the cases that its validation needs.
        """
        if fold is None:
            return Split(**self.splits["fixed"])
        if fold == ALL:
            return Split(sorted(self.cases), [], [], [])
        folds = self.splits["folds"]
        if not 0 <= fold < len(folds):
            raise BadInput(f"fold={fold}", f"{self.name} has {len(folds)} folds, counted from 0", "see splits.json")
        found, held_out = Split(**folds[fold]), self.splits.get("choosing") or []
        if not (choosing and held_out):
            return found
        kept = [case for case in found.train if case not in held_out[fold]]
        return replace(found, train=kept, validation=list(held_out[fold]))


def _read_index(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """dataset.json and splits.json, compared with the checksums in the marker."""
    if not (folder / MARKER).is_file():
        raise BadInput(folder.name, "is not a prepared data set", "make one with src/prepare.py")
    if not (folder / "dataset.json").is_file():
        raise BadInput(folder.name, "is not finished", "run src/prepare.py with the same options: it goes on there")
    content = []
    for name in ("dataset.json", "splits.json"):
        try:
            if sha256(folder / name) != read_json(folder / MARKER)[name]:
                raise ValueError("does not match its checksum")
            content.append(read_json(folder / name))
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{folder.name}/{name}", f"is damaged or was edited ({error})", REBUILD) from error
    if content[0].get("format") != FORMAT:
        raise BadInput(folder.name, f"has format {content[0].get('format')}, not {FORMAT}", "run src/prepare.py again")
    return content[0], content[1]
