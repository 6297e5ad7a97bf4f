"""Masks out: whole or not at all, read back through the gate before they take their names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from covidseg.scans import write_dicom
from covidseg.scans.gate import nifti
from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import apart
from covidseg.scans.gate.names import kind, refuse_sibling, require_text, shown
from covidseg.scans.geometry import Geometry
from covidseg.scans.read import read_mask, read_volume
from covidseg.scans.segments import COLOURS, OTHER_COLOUR
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.files import atomic_path

__all__ = ["DICOM_SEG", "MASK_FORMATS", "SLICER_SEG", "to_sitk", "write_mask", "write_probability"]

DICOM_SEG, SLICER_SEG = ".dcm", ".seg.nrrd"
MASK_FORMATS = (".nii.gz", ".nii", ".mha", ".nrrd", SLICER_SEG, DICOM_SEG)
_PLAIN = {1: "mask"}


def write_mask(
    path: Path | str,
    mask: np.ndarray,
    geometry: Geometry,
    *,
    overwrite: bool = False,
    segments: Mapping[int, str] | None = None,
    slices: Sequence[tuple[Path, int]] = (),
) -> None:
    """Write uint8 labels (z, y, x) on `geometry` as one of `MASK_FORMATS`, whole or not at all.

    `segments` names the labels, which .seg.nrrd (3D Slicer) and .dcm (DICOM SEG) keep, with a colour for each; without
    it there is one, called "mask". A DICOM SEG refers to the scan's own `slices` (`Scan.slices`) and repeats who the
    patient is from them; every other format holds labels and geometry only. The file is read back through the gate and
    compared before it takes its name. Raises `BadInput` for a name that cannot be used and for slices that a DICOM SEG
    cannot refer to, and `EnvironmentFault` when the disk did not keep it or highdicom is not there.
    """
    suffix, names, what = _require_writable(require_text(path), overwrite), dict(segments or _PLAIN), shown(path)
    if mask.dtype != np.uint8 or mask.shape != geometry.shape_zyx:
        raise ValueError(f"expected uint8 {geometry.shape_zyx}, got {mask.dtype} {mask.shape}")
    with atomic_path(path, suffix=suffix) as temporary:
        if suffix == DICOM_SEG:
            write_dicom.write(temporary, what, mask, names, slices)
        else:
            _write_volume(temporary, suffix, what, mask, geometry, names if suffix == SLICER_SEG else {})
        _verify(temporary, what, mask, geometry, names if suffix in (SLICER_SEG, DICOM_SEG) else {})


def write_probability(
    path: Path | str, probability: np.ndarray, geometry: Geometry, *, overwrite: bool = False
) -> None:
    """Write float32 (z, y, x) on `geometry` as NIfTI, MetaImage or NRRD, read back before it takes its name."""
    suffix, what = _require_writable(require_text(path), overwrite), shown(path)
    if probability.dtype != np.float32 or probability.shape != geometry.shape_zyx or suffix in (SLICER_SEG, DICOM_SEG):
        raise ValueError(
            f"{suffix}: expected float32 {geometry.shape_zyx}, got {probability.dtype} {probability.shape}"
        )
    with atomic_path(path, suffix=suffix) as temporary:
        _write_volume(temporary, suffix, what, probability, geometry, {})
        _verify(temporary, what, probability, geometry, {})


def to_sitk(mask: np.ndarray, geometry: Geometry) -> sitk.Image:
    """(z, y, x) array -> SimpleITK image on the same grid, without any other header entry."""
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(geometry.spacing_zyx[::-1])
    image.SetOrigin(geometry.origin_xyz)
    image.SetDirection(geometry.direction)
    return image


def _write_volume(
    path: Path, suffix: str, what: str, voxels: np.ndarray, geometry: Geometry, names: Mapping[int, str]
) -> None:
    """In whatever format holds voxels and geometry; `names` are 3D Slicer's segments."""
    if suffix.startswith(".nii"):
        nifti.write(path, voxels, geometry, compressed=suffix == ".nii.gz")
        return
    image = to_sitk(voxels, geometry)
    for key, value in _slicer_header(geometry, names).items() if names else ():
        image.SetMetaData(key, value)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise EnvironmentFault(what, "could not be written", "check the disk") from error


def _slicer_header(geometry: Geometry, names: Mapping[int, str]) -> dict[str, str]:
    """What 3D Slicer 5 writes into the header of a segmentation, so that names and colours come up in it."""
    extent = " ".join(f"0 {n - 1}" for n in geometry.shape_zyx[::-1])
    header = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, (value, name) in enumerate(names.items()):
        colour = COLOURS.get(name, OTHER_COLOUR)
        own = {
            "ID": f"Segment_{number + 1}",
            "Name": name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6g}" for part in colour),
            "ColorAutoGenerated": "0",
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": extent,
        }
        header |= {f"Segment{number}_{key}": text for key, text in own.items()}
    return header


def _require_writable(path: Path, overwrite: bool) -> str:
    what = shown(path)
    suffix = next((end for end in (SLICER_SEG, *MASK_FORMATS) if path.name.endswith(end)), None)
    if suffix is None:
        remedy = f"end its name with {', '.join(MASK_FORMATS)} in lower case"
        raise BadInput(what, "cannot be written in this format", remedy)
    if os.path.lexists(path) and (not overwrite or kind(path) == "folder"):
        raise BadInput(what, "exists already", "choose another name, or allow overwriting")
    if os.path.lexists(path.parent) and kind(path.parent) != "folder":
        raise BadInput(shown(path.parent), "is a file where a folder is needed", "choose another folder")
    refuse_sibling(path)
    return suffix


def _verify(written: Path, what: str, mask: np.ndarray, geometry: Geometry, names: Mapping[int, str]) -> None:
    """Read the file back: by the names of its segments where it keeps them."""
    try:
        if names:
            back, _ = read_mask(written, geometry, labels={name: value for value, name in names.items()})
            same = np.array_equal(back, mask)
        else:
            volume = read_volume(written, Assume(size=True))
            same = np.array_equal(volume.stored, mask) and not apart(geometry, volume.geometry)
    except BadInput as error:
        raise EnvironmentFault(what, f"was written, but reads back as: {error.wrong}", "check the disk") from error
    if not same:
        raise EnvironmentFault(what, "was written, but reads back differently", "check the disk")
