"""The slices of one CT series, put in order along the patient: regular, upright and complete, or refused."""

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.dicom_file import DicomFile
from covidseg.scans.gate.grids import believable
from covidseg.scans.gate.tilt import is_even, sideways
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

_SAME_PLACE_MM = 0.01
_STEP_TOLERANCE = (0.1, 0.01)  # mm, and share of a step: the larger counts
_WHOLE = 0.1  # of a slice: what a gap may be off a whole number of missing ones
_DRIFT_PIXELS = 0.1
_HEADER_TOLERANCE = 1e-4  # between the headers of one series: sizes, spacing in mm, cosines
_COSINE_TOLERANCE = 1e-3  # what rounding in text leaves of a unit vector
_COMMON = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}


def require_ct_slice(file: DicomFile) -> None:
    """`BadInput` for anything but one grey image of a CT."""
    if file.number("NumberOfFrames", default="1") != 1:
        raise BadInput(file.what, "holds several frames in one file", "convert it to NIfTI or to single slices")
    if file.pixels is None:
        raise BadInput(file.what, "unreadable: it has no voxels", "copy or export it again")
    for name, wanted in (("Modality", "CT"), ("SamplesPerPixel", "1"), ("PhotometricInterpretation", "MONOCHROME2")):
        if file.text(name) != wanted:
            raise BadInput(file.what, f"{name} is not {wanted}", "export the original CT series")
    for name in ("Rows", "Columns"):
        if file.number(name) < 1:
            raise BadInput(file.what, f"{name} is 0: it has no voxels", "copy or export it again")


def arrange(
    what: str, slices: list[DicomFile], assume: Assume
) -> tuple[list[list[DicomFile]], Geometry, np.ndarray | None, list[str]]:
    """(files at each place in order along the slice normal, geometry, sideways shifts of a tilted gantry, notes).

    The shifts, (n, 2) mm along rows and columns, are None where the slices stand above one another.
    """
    first = slices[0]
    for file in slices[1:]:
        for name, count in _COMMON.items():
            if np.abs(file.numbers(name, count) - first.numbers(name, count)).max() > _HEADER_TOLERANCE:
                raise BadInput(what, f"{file.what} differs from {first.what} in {name}", "separate the series")
    rows, columns, pixel, orientation = (first.numbers(name, count) for name, count in _COMMON.items())
    direction = direction_of(first.what, orientation)
    places, positions = _in_order(slices, direction[:, 2])
    shift = _shift(what, positions, direction, pixel.min(), assume)
    step, notes = _step(what, positions @ direction[:, 2], first)
    notes += _numbering(what, [files[0] for files in places], assume)
    shape = (len(places), int(rows[0]), int(columns[0]))
    geometry = believable(what, shape, direction, (pixel[1], pixel[0], step), positions[0], assume)
    return places, geometry, shift, notes


def _in_order(slices: list[DicomFile], normal: np.ndarray) -> tuple[list[list[DicomFile]], np.ndarray]:
    """(files at each place, (n, 3) positions of the places), along the normal; names and numbers do not count."""
    positions = np.array([file.numbers("ImagePositionPatient", 3) for file in slices])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    is_new = np.diff(along[order], prepend=-np.inf) > _SAME_PLACE_MM
    places: list[list[DicomFile]] = []
    for index, new in zip(order, is_new, strict=True):
        if new:
            places.append([])
        places[-1].append(slices[index])
    return places, positions[order][is_new]


def _shift(
    what: str, positions: np.ndarray, direction: np.ndarray, pixel_mm: float, assume: Assume
) -> np.ndarray | None:
    """Slices may be tilted, but must lie straight above one another: a tilted gantry shears the volume."""
    shift = sideways(positions, direction)
    drift = np.linalg.norm(shift, axis=1).max()
    if drift <= _DRIFT_PIXELS * pixel_mm:
        return None
    wrong = f"its slices shift sideways by {drift:.3g} mm (gantry tilt)"
    if not is_even(shift, pixel_mm):
        raise BadInput(what, f"its slices shift sideways by up to {drift:.3g} mm, unevenly", "export the series again")
    if not assume.tilt:
        remedy = assume.or_say("resample it to right angles", "tilt=true to have that done")
        raise BadInput(what, wrong, remedy)
    return shift


def direction_of(what: str, orientation: np.ndarray) -> np.ndarray:
    """(3, 3) columns: along a row, down a column, along the slice normal. Rounding of the cosines is taken out."""
    axes = orientation.reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=_COSINE_TOLERANCE):
        raise BadInput(what, "ImageOrientationPatient is not two unit vectors at right angles", "export it again")
    across, down = axes
    across = across / np.linalg.norm(across)
    down = down - (down @ across) * across
    down /= np.linalg.norm(down)
    return np.stack([across, down, np.cross(across, down)], axis=1)


def _step(what: str, along: np.ndarray, first: DicomFile) -> tuple[float, list[str]]:
    """The distance between neighbouring slices, which must be the same everywhere."""
    if len(along) == 1:
        return first.number("SliceThickness"), ["a single slice: its thickness is taken for the spacing"]
    steps = np.diff(along)
    mean, median = steps.mean(), np.median(steps)
    off = np.abs(along - (along[0] + mean * np.arange(len(along)))).max()
    if off > max(_STEP_TOLERANCE[0], _STEP_TOLERANCE[1] * median):
        wide = np.flatnonzero(steps > 1.5 * median)
        missing = steps[wide] / median - 1
        if wide.size and np.abs(missing - np.rint(missing)).max() <= _WHOLE:
            listed = ", ".join(f"{steps[i] / median - 1:.0f} after position {along[i]:g} mm" for i in wide[:5])
            raise BadInput(what, f"slices are missing: {listed}", "copy or export the whole series again")
        if wide.size:
            listed = ", ".join(f"{steps[i]:.4g} mm after position {along[i]:g} mm" for i in wide[:5])
            wrong = f"slices lie {median:.4g} mm apart, but {listed}: no whole number of them is missing there"
            raise BadInput(what, wrong, "are these two scans in one series? export each by itself")
        raise BadInput(what, f"slices lie {steps.min():.4g} to {steps.max():.4g} mm apart", "export one regular series")
    return float(mean), []


def thickness_of(file: DicomFile) -> float | None:
    """How thick its slice is in mm; None where the header does not say it in a number above 0."""
    try:
        thickness = file.number("SliceThickness")
    except BadInput:
        return None
    return thickness if thickness > 0 else None


def _numbering(what: str, slices: list[DicomFile], assume: Assume) -> list[str]:
    """Slices missing at an end, or every second one, leave no gap; their numbers may show it."""
    announced = max(file.number("ImagesInAcquisition", default="0") for file in slices)
    if announced > len(slices) and not assume.partial:
        found = f"holds {len(slices)} of {announced:.0f} slices that its header announces"
        raise BadInput(what, found, assume.or_say("copy the whole series", "partial=true"))
    numbers = {int(file.number("InstanceNumber", default="-1")) for file in slices}
    if len(numbers) < len(slices) or min(numbers) < 0:
        return ["InstanceNumber absent or not unique: a slice missing at an end would not show"]
    if max(numbers) - min(numbers) + 1 != len(numbers) and not assume.partial:
        found = f"InstanceNumber runs from {min(numbers)} to {max(numbers)} over {len(numbers)} slices"
        raise BadInput(what, f"slices are missing: {found}", assume.or_say("copy the whole series", "partial=true"))
    first = min(numbers)
    return [f"InstanceNumber begins at {first}: part of a longer series?"] if first > 1 else []
