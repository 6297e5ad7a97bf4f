"""Reading a prepared data set: memory-mapped arrays and what describes them, without SimpleITK and the raw scans."""

import hashlib
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from covidseg.data.prepare.grid import Grid
from covidseg.data.prepare.splits import ALL, SIDES
from covidseg.scans.gate.names import require_case_id
from covidseg.system.errors import BadInput
from covidseg.system.files import MAX_JSON_BYTES, parse_json, read_json, sha256
from covidseg.system.readback import NUMBER, mismatch

FORMAT = 1  # of the folder; another one is another folder
MARKER = ".covidseg-prepared"  # a folder without it is not ours, and nothing in it is touched
ARRAYS = ("image.npy", "mask.npy", "reference.npz")
MAX_VOXELS = 1 << 33  # of one scan: 32 times 1024 slices of 512 x 512, and less than any header bomb
_NPY_HEADER = 1 << 12  # bytes before the numbers of a .npy file, at most
LABELS = {"lung": 1, "lesion": 2}  # of every stored label map; 0 is background
_SHA256 = re.compile("[0-9a-f]{64}")
_INDEX = {
    "format": int,
    "name": re.compile(r"[A-Za-z0-9._-]{1,128}"),
    "hash": re.compile(r"[A-Za-z0-9._-]{1,128}"),
    "spacing_zyx": [NUMBER, NUMBER, NUMBER],
    "cases": [{"id": str, "patient": str, "site": str, "annotated": [set(LABELS)], "sha256": _SHA256}],
}
_SIDES = {side: [str] for side in SIDES}
_SPLITS = {"fixed": _SIDES, "folds": [_SIDES], "drawn?": [set(_SIDES)], "choosing?": [[str]]}
_THREE = [int, int, int]
CASE = {  # of case.json
    "grid": {
        "native": {
            "shape_zyx": _THREE,
            "spacing_zyx": [NUMBER, NUMBER, NUMBER],
            "origin_xyz": [NUMBER, NUMBER, NUMBER],
            "direction": [NUMBER],
        },
        "box_zyx": [[int, int], [int, int], [int, int]],
        "shape_zyx": _THREE,
        "spacing_zyx": [NUMBER, NUMBER, NUMBER],
        "body_found": bool,
    },
    "foreground": {name: [_THREE] for name in LABELS},
    "volume_ml": {...: NUMBER},
    "sha256": dict.fromkeys(ARRAYS, _SHA256),
    "sources?": {...: str},
    "notes?": [str],
}
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
        return self._array("image.npy", np.int16)

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 label map (z, y, x) on `grid`, memory-mapped, read-only."""
        return self._array("mask.npy", np.uint8)

    def reference(self) -> np.ndarray:
        """uint8 label map (z, y, x) on the scan's own grid, in its own array order: what predictions are scored on."""
        path, shape = self._checked("reference.npz"), self.grid.native.shape_zyx
        try:
            with zipfile.ZipFile(path) as archive:  # what it unpacks to is known before it is unpacked
                if archive.getinfo("labels.npy").file_size > math.prod(shape) + _NPY_HEADER:
                    raise ValueError("it unpacks to more than the scan has voxels")
            with np.load(path, allow_pickle=False) as archive:
                return self._as_promised(archive["labels"], np.uint8, shape)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"case {self.id}", f"reference.npz cannot be used ({error})", REBUILD) from error

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
        try:
            info = parse_json(content[:MAX_JSON_BYTES])
            if wrong := mismatch(info, CASE):
                raise ValueError(wrong)
            _require_grid(info)
        except ValueError as error:
            raise BadInput(f"case {self.id}", f"case.json is not that of a case ({error})", REBUILD) from error
        return info

    def verify(self) -> None:
        """Compare every file with its checksum; raises `BadInput` naming the case and the file."""
        for name in ARRAYS:
            self._checked(name)

    def _array(self, name: str, dtype: type) -> np.ndarray:
        path = self._checked(name)
        try:
            return self._as_promised(np.load(path, mmap_mode="r", allow_pickle=False), dtype, self.grid.shape_zyx)
        except (ValueError, OSError, EOFError) as error:
            raise BadInput(f"case {self.id}", f"{name} cannot be used ({error})", REBUILD) from error

    @staticmethod
    def _as_promised(array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        if array.dtype != dtype or array.shape != tuple(shape):
            wanted = f"{np.dtype(dtype)} of {tuple(shape)}"
            raise ValueError(f"it is {array.dtype} of {array.shape}, and case.json says {wanted}")
        return array

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
        if type(fold) is not int or not 0 <= fold < len(folds):
            raise BadInput(f"fold={fold}", f"{self.name} has {len(folds)} folds, counted from 0", "see splits.json")
        found, held_out = Split(**folds[fold]), self.splits.get("choosing") or []
        if not (choosing and held_out):
            return found
        kept = [case for case in found.train if case not in held_out[fold]]
        return replace(found, train=kept, validation=list(held_out[fold]))


def whole_ml(info: Mapping[str, Any], name: str) -> float | None:
    """ml of a structure by a case's case.json, the lung with the lesions in it; None where it is not annotated."""
    volumes = info["volume_ml"]
    if name not in volumes:
        return None
    return volumes[name] + (volumes.get("lesion", 0) if name == "lung" else 0)


def _require_grid(info: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the grid of a case contradicts itself, or its coordinates lie outside it."""
    grid = Grid.from_dict(info["grid"])
    shape, box, native = grid.shape_zyx, grid.box_zyx, grid.native.canonical().shape_zyx
    if min(shape) < 1 or min(grid.spacing_zyx) <= 0 or math.prod(shape) > MAX_VOXELS or math.prod(native) > MAX_VOXELS:
        raise ValueError(f"no scan is prepared to {shape} voxels of {grid.spacing_zyx} mm")
    if not all(0 <= a < b <= n for (a, b), n in zip(box, native, strict=True)):
        raise ValueError(f"the box {box} does not lie in a scan of {native}")
    for name in LABELS:
        points = np.array(info["foreground"][name], np.int64).reshape(-1, 3)
        if len(points) and (points.min() < 0 or (points >= shape).any()):
            raise ValueError(f"a {name} voxel lies outside the {shape} voxels of the case")


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
    index, splits = content
    if isinstance(index, dict) and index.get("format") != FORMAT:
        raise BadInput(folder.name, f"has format {index.get('format')}, not {FORMAT}", "run src/prepare.py again")
    for name, value, shape in (("dataset.json", index, _INDEX), ("splits.json", splits, _SPLITS)):
        if wrong := mismatch(value, shape):
            raise BadInput(f"{folder.name}/{name}", f"is not that of a prepared data set ({wrong})", REBUILD)
    _require_ids(folder, index, splits)
    return index, splits


def _require_ids(folder: Path, index: Mapping[str, Any], splits: Mapping[str, Any]) -> None:
    """Ids become folder names, of outputs too: each is one plain name, occurs once, and is meant by the splits."""
    ids = {require_case_id(row["id"]) for row in index["cases"]}
    if len(ids) != len(index["cases"]):
        raise BadInput(f"{folder.name}/dataset.json", "names a case twice", REBUILD)
    divisions = [*(sides[side] for sides in (splits["fixed"], *splits["folds"]) for side in _SIDES)]
    for case in (case for named in (*divisions, *(splits.get("choosing") or ())) for case in named):
        if case not in ids:
            raise BadInput(f"{folder.name}/splits.json", f"names {case!r}, and there is no such case", REBUILD)
    if len(splits.get("choosing") or splits["folds"]) != len(splits["folds"]):
        raise BadInput(f"{folder.name}/splits.json", "does not say for each fold what its validation needs", REBUILD)
