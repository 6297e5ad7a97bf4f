"""What a run keeps of a few held-out cases for the figures: one axial slice, and the surface at low resolution.

`slices/<case>_<structure>.npz` in the run folder. The slice and the cases depend on the reference alone, so every row
of a table keeps the same ones and their contours can stand side by side.
"""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from covidseg.runs import predictions
from covidseg.scans.geometry import triple
from covidseg.system.errors import BadInput
from covidseg.system.files import atomic_path

if TYPE_CHECKING:  # the report reads slices without torch
    from covidseg.data.store import PreparedCase
    from covidseg.evaluation.structures import Task

FOLDER = "slices"
CASES_PER_SET = 3
_MAX_BYTES = 1 << 28
_SURFACE_VOXELS = 112  # longest side of the kept volumes: 4 mm for an adult chest


@dataclass(frozen=True)
class Slice:
    """One structure of one case: `image` (y, x) int16 HU, `reference` and `prediction` (y, x) bool, at index `z`.

    `volumes` holds the whole masks (2, z, y, x) bool, reference first, at `volume_spacing_zyx` mm.
    """

    case: str
    structure: str
    z: int
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing_yx: tuple[float, float]
    volumes: np.ndarray
    volume_spacing_zyx: tuple[float, float, float]

    @classmethod
    def cut(
        cls,
        case: str,
        structure: str,
        image: np.ndarray,
        reference: np.ndarray,
        prediction: np.ndarray,
        spacing_zyx: Sequence[float],
    ) -> Self:
        """From volumes (z, y, x): the slice of largest reference area (predicted area if there is no reference)."""
        shown = reference if reference.any() else prediction
        z = int(np.count_nonzero(shown, axis=(1, 2)).argmax())
        extent = max(size * step for size, step in zip(image.shape, spacing_zyx, strict=True))
        strides = [max(1, round(extent / _SURFACE_VOXELS / step)) for step in spacing_zyx]
        coarse = np.stack([_majority_in_blocks(mask, strides) for mask in (reference, prediction)])
        return cls(
            case,
            structure,
            z,
            np.asarray(image[z], np.int16),
            np.asarray(reference[z], bool),
            np.asarray(prediction[z], bool),
            (float(spacing_zyx[1]), float(spacing_zyx[2])),
            coarse,
            tuple(float(step) * stride for step, stride in zip(spacing_zyx, strides, strict=True)),
        )

    def save(self, run: Path | str) -> None:
        """Write into a run's folder."""
        path = Path(run) / FOLDER / f"{self.case}_{self.structure}.npz"
        with atomic_path(path, suffix=".npz") as temporary:
            np.savez_compressed(
                temporary,
                z=self.z,
                image=self.image,
                reference=self.reference,
                prediction=self.prediction,
                spacing_yx=self.spacing_yx,
                volumes=np.packbits(self.volumes),
                volumes_shape=self.volumes.shape,
                volume_spacing_zyx=self.volume_spacing_zyx,
            )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; `BadInput` where it is something else."""
        case, _, structure = Path(path).stem.rpartition("_")
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                    raise ValueError("it unpacks to more than a slice")
            with np.load(path, allow_pickle=False) as kept:
                shape = tuple(int(size) for size in kept["volumes_shape"])
                volumes = np.unpackbits(kept["volumes"], count=math.prod(shape)).astype(bool).reshape(shape)
                one = cls(
                    case,
                    structure,
                    int(kept["z"]),
                    kept["image"],
                    kept["reference"],
                    kept["prediction"],
                    _pair(kept["spacing_yx"]),
                    volumes,
                    triple(float(step) for step in kept["volume_spacing_zyx"].tolist()),
                )
            one._require_sense()
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(Path(path).name, f"is no slice that a run keeps ({error})", "remove it") from error
        return one

    def _require_sense(self) -> None:
        planes = (self.image, self.reference, self.prediction)
        if [plane.dtype for plane in planes] != [np.int16, bool, bool] or len({plane.shape for plane in planes}) != 1:
            raise ValueError("its image and masks differ")
        steps = (*self.spacing_yx, *self.volume_spacing_zyx)
        if self.image.ndim != 2 or self.volumes.ndim != 4 or len(self.volumes) != 2 or len(steps) != 5:
            raise ValueError("its arrays have other dimensions")
        if not all(0 < step < math.inf for step in steps):
            raise ValueError(f"its voxels of {steps} mm")


def keeping_slices(
    segment: Callable[["PreparedCase"], np.ndarray],
    run: Path | str,
    task: "Task",
    sets: Mapping[str, Sequence["PreparedCase"]],
) -> Callable[["PreparedCase"], np.ndarray]:
    """`segment`, which as a side effect keeps in the `run` folder what figures need.

    Of every case the predicted masks, of those that `shown_cases` names slices, too. `segment(case)` gives the class
    map on the scan's own grid; image and masks are kept on the prepared grid.
    """
    shown = shown_cases(task, sets)

    def segment_and_keep(case: "PreparedCase") -> np.ndarray:
        classes = segment(case)
        predictions.keep(run, case.id, classes, case.grid, task)
        if case.id in shown:
            on_grid = case.grid.labels(classes)
            for name, structure in task.structures.items():
                if name in case.annotated:
                    reference, prediction = structure.in_reference(case.mask), structure.in_prediction(on_grid)
                    Slice.cut(case.id, name, case.image, reference, prediction, case.grid.spacing_zyx).save(run)
        return classes

    return segment_and_keep


def shown_cases(task: "Task", sets: Mapping[str, Sequence["PreparedCase"]]) -> set[str]:
    """Ids of the cases to show: of each set those with the most, the median and the least lesion volume above 0.

    Lesions choose for every task, so that lungs and lesions of one case can be shown together; where no case of a set
    has any, the lungs do.
    """
    shown: set[str] = set()
    for cases in sets.values():
        usable = [case for case in cases if set(case.annotated) & set(task.structures)]
        for name in ("lesion", "lung"):
            volumes = {case.id: case.info["volume_ml"].get(name, 0) for case in usable}
            ranked = sorted((-volume, case) for case, volume in volumes.items() if volume > 0)
            if ranked:
                count = min(CASES_PER_SET, len(ranked))
                shown |= {ranked[round(i * (len(ranked) - 1) / max(count - 1, 1))][1] for i in range(count)}
                break
    return shown


def _majority_in_blocks(mask: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Whether at least half of each block of `strides` voxels is set: a coarse mask of about the same volume."""
    padded = np.pad(
        np.asarray(mask, np.float32), [(0, -size % step) for size, step in zip(mask.shape, strides, strict=True)]
    )
    z, y, x = (size // step for size, step in zip(padded.shape, strides, strict=True))
    blocks = padded.reshape(z, strides[0], y, strides[1], x, strides[2])
    return blocks.mean(axis=(1, 3, 5)) >= 0.5


def _pair(values: np.ndarray) -> tuple[float, float]:
    first, second = values.tolist()
    return float(first), float(second)
