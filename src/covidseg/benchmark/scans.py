"""The scans that contenders work on: phantoms, computed once and kept beside the results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from covidseg.data.store import LABELS
from covidseg.phantom.make import make_phantom
from covidseg.system.files import atomic_path

SEED = 20
WINDOW = (-1250, 250)  # HU that networks see as 0 and 1, as in conf/data


@dataclass(frozen=True)
class Scan:
    """A phantom on disk, with what `PatchSampler` needs of a case."""

    id: str
    folder: Path
    spacing_zyx: tuple[float, float, float]

    @cached_property
    def image(self) -> np.ndarray:
        """int16 HU (z, y, x), memory-mapped."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 stored labels (z, y, x), memory-mapped."""
        return np.load(self.folder / "mask.npy", mmap_mode="r")

    @cached_property
    def foreground(self) -> dict[str, np.ndarray]:
        """Some voxels of each structure, as prepared cases have them."""
        mask = np.asarray(self.mask)
        found = {name: np.argwhere(mask == label).astype(np.int32) for name, label in LABELS.items()}
        return {name: voxels[:: max(1, len(voxels) // 10_000)] for name, voxels in found.items()}


def scans(folder: Path, shape_zyx: Sequence[int], count: int) -> list[Scan]:
    """`count` phantoms of a shape, each with lesions, from `folder` where they lie there already."""
    return [_scan(Path(folder), tuple(int(n) for n in shape_zyx), number) for number in range(count)]


def _scan(folder: Path, shape_zyx: tuple[int, ...], number: int) -> Scan:
    place = folder / f"{'x'.join(map(str, shape_zyx))}-{number}"
    spacing = place / "spacing.npy"
    if not spacing.is_file():
        made = make_phantom(SEED, shape_zyx, patient=number)
        for name, array in (("image", made.hu), ("mask", made.labels), ("spacing", np.array(made.spacing_zyx))):
            with atomic_path(place / f"{name}.npy", ".npy") as temporary:
                np.save(temporary, array)
    z, y, x = (float(step) for step in np.load(spacing))
    return Scan(f"phantom{number}", place, (z, y, x))


def write_nifti(path: Path, array: np.ndarray, spacing_zyx: Sequence[float]) -> None:
    """An array (z, y, x) as a file that anybody's reader takes; where it lies there already it stays."""
    if path.is_file():
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in reversed(spacing_zyx)])
    with atomic_path(path, ".nii.gz") as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def enlarged(scan: Scan, shape_zyx: Sequence[int]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Image, mask and spacing of a scan with so many voxels more: a large scan without the minutes of a large phantom.

    Voxels are repeated, so the content is that of the small one.
    """
    factors = [math.ceil(n / m) for n, m in zip(shape_zyx, scan.image.shape, strict=True)]
    image, mask = np.asarray(scan.image), np.asarray(scan.mask)
    for axis, factor in enumerate(factors):
        image, mask = np.repeat(image, factor, axis), np.repeat(mask, factor, axis)
    part = tuple(slice(0, n) for n in shape_zyx)
    spacing = tuple(step / factor for step, factor in zip(scan.spacing_zyx, factors, strict=True))
    return np.ascontiguousarray(image[part]), np.ascontiguousarray(mask[part]), spacing
