"""What a run keeps of every held-out case: the masks that it predicted, for the report's viewer.

`predictions/<case>.npz` in the run folder: bits on the prepared grid, which the scan can be read on again, within the
box that they fill. Some kilobytes for a small phantom, some tens for a chest; the scan itself is not kept.
"""

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from covidseg.scans.geometry import union_box
from covidseg.system.errors import BadInput
from covidseg.system.files import atomic_path

if TYPE_CHECKING:  # the report reads without torch
    from covidseg.data.prepare.grid import Grid
    from covidseg.evaluation.structures import Task

FOLDER = "predictions"
_MAX_BYTES = 1 << 30  # of packed bits: a scan of 2000 slices


def keep(run: Path | str, case: str, classes: np.ndarray, grid: "Grid", task: "Task") -> None:
    """Write the masks of a class map (z, y, x) on the scan's own grid into a run's folder, atomically."""
    nearest = on_grid(classes, grid)
    stored: dict[str, np.ndarray] = {"shape": np.array(nearest.shape)}
    for name, structure in task.structures.items():
        mask = structure.in_prediction(nearest)
        box = union_box(mask)
        stored[f"{name}.box"] = np.array([(side.start, side.stop) for side in box])
        stored[f"{name}.bits"] = np.packbits(mask[box])
    with atomic_path(Path(run) / FOLDER / f"{case}.npz", suffix=".npz") as temporary:
        np.savez_compressed(temporary, **stored)  # type: ignore[arg-type]  # its stub takes a flag there


def load(path: Path | str) -> dict[str, np.ndarray]:
    """{structure: bool mask (z, y, x) on the prepared grid}; `BadInput` where the file is something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise ValueError("it unpacks to more than the masks of a scan")
        with np.load(path, allow_pickle=False) as kept:
            shape = _sizes(kept["shape"], 3)
            names = [name.removesuffix(".bits") for name in kept.files if name.endswith(".bits")]
            return {name: _unpacked(kept[f"{name}.bits"], kept[f"{name}.box"], shape) for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(Path(path).name, f"holds no masks that a run keeps ({error})", "remove it") from error


def on_grid(classes: np.ndarray, grid: "Grid") -> np.ndarray:
    """The class of the scan's voxel that each voxel centre of the prepared grid lies in."""
    inside = grid.native.to_canonical(classes)[tuple(slice(a, b) for a, b in grid.box_zyx)]
    centres = [
        np.minimum(((np.arange(wanted) + 0.5) * size / wanted).astype(int), size - 1)
        for size, wanted in zip(inside.shape, grid.shape_zyx, strict=True)
    ]
    return np.asarray(inside[np.ix_(*centres)])


def _unpacked(bits: np.ndarray, box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    sides = [_sizes(side, 2) for side in box]
    if len(sides) != len(shape) or any(not low <= high <= size for (low, high), size in zip(sides, shape, strict=True)):
        raise ValueError(f"its box {box.tolist()} does not lie in {shape} voxels")
    sizes = [high - low for low, high in sides]
    mask = np.zeros(shape, bool)
    inside = np.unpackbits(bits, count=math.prod(sizes)).astype(bool).reshape(sizes)
    mask[tuple(slice(*side) for side in sides)] = inside
    return mask


def _sizes(values: np.ndarray, count: int) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in values)
    if len(sizes) != count or min(sizes) < 0 or math.prod(max(size, 1) for size in sizes) > 8 * _MAX_BYTES:
        raise ValueError(f"{count} sizes are expected, not {sizes}")
    return sizes
