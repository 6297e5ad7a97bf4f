"""Radiotherapy structure sets (RTSTRUCT, PS3.3 C.8.8): regions as closed contours in slices, filled to voxels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from covidseg.scans.gate.dicom_object import read_object
from covidseg.scans.gate.grids import TOLERANCE_VOXELS
from covidseg.scans.gate.meanings import meanings
from covidseg.scans.gate.names import printable, shown
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

_KEYWORDS = ("StructureSetROISequence", "ROIContourSequence")
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_BEYOND = 1.0  # voxels that a contour may reach beyond the centres of the scan's outer ones
_ELSEWHERE = "give the RTSTRUCT of this scan"


def read(path: Path, wanted: Geometry, labels: Mapping[int | str, int], mapped_by: str) -> tuple[np.ndarray, list[str]]:
    """(uint8 (z, y, x) on `wanted`, notes): the regions of an RTSTRUCT that `labels` names, filled.

    A region counts by its name, case apart, and those that are not named are background as long as one is; the only
    region of a file needs no name. A voxel belongs to a region where its centre lies within an odd number of the
    region's contours, so that one inside another is a hole. Where regions overlap, the higher label counts.
    `BadInput` where a contour lies between slices or outside the scan, or where a region skips slices throughout.
    """
    what = shown(path)
    _, dataset = read_object(path, _KEYWORDS)
    names = {int(one.ROINumber): printable(str(one.get("ROIName", "")).strip()) for one in
             dataset.StructureSetROISequence}  # fmt: skip
    drawn = {int(one.ReferencedROINumber): list(one.get("ContourSequence") or []) for one in
             dataset.ROIContourSequence}  # fmt: skip
    numbers = [number for number in names if drawn.get(number)]
    if not numbers:
        raise BadInput(what, "holds no region with a contour", "export the structure set again")
    meant = meanings(
        what, [names[number] for number in numbers], labels, mapped_by, part="region", others_are_background=True
    )
    mask = np.zeros(wanted.shape_zyx, np.uint8)
    for number, label in zip(numbers, meant, strict=True):
        if label:
            region = f"{what}, region {names[number]}"
            kinds = {str(contour.ContourGeometricType) for contour in drawn[number]}
            points = [np.array(contour.ContourData, float).reshape(-1, 3) for contour in drawn[number]]
            if not kinds <= _CLOSED:
                raise BadInput(region, f"is of {', '.join(sorted(kinds))}, not closed contours", _ELSEWHERE)
            np.maximum(mask, filled_region(region, points, wanted) * np.uint8(label), out=mask)
    left_out = [names[number] for number, label in zip(numbers, meant, strict=True) if not label]
    taken = [names[number] for number, label in zip(numbers, meant, strict=True) if label]
    return mask, [f"regions: {', '.join(taken)}" + (f"; left out: {', '.join(left_out)}" if left_out else "")]


def filled_region(what: str, contours: Sequence[np.ndarray], grid: Geometry) -> np.ndarray:
    """Boolean (z, y, x): what closed contours, (n, 3) LPS mm each, surround in the slices of `grid`."""
    indices = [np.linalg.solve(grid.step_mm, (points - grid.origin_xyz).T).T[:, ::-1] for points in contours]
    axis = _slice_axis(what, indices)
    rows, columns = (other for other in range(3) if other != axis)
    inside = np.zeros(grid.shape_zyx, bool)
    slices = np.moveaxis(inside, axis, 0)  # a view
    by_slice: dict[int, list[np.ndarray]] = {}
    for points in indices:
        last = np.array(grid.shape_zyx) - 1
        if (points < -_BEYOND).any() or (points > last + _BEYOND).any():
            raise BadInput(what, "reaches beyond its scan", _ELSEWHERE)
        number = int(np.rint(points[:, axis].mean()))
        if not 0 <= number <= last[axis]:
            raise BadInput(what, "reaches beyond its scan", _ELSEWHERE)
        by_slice.setdefault(number, []).append(points[:, (rows, columns)])
    numbers = sorted(by_slice)
    if len(numbers) > 2 and np.diff(numbers).min() > 1:
        wrong = f"has contours in every {np.diff(numbers).min()}th slice at most: drawn on another series?"
        raise BadInput(what, wrong, _ELSEWHERE)
    for number, polygons in by_slice.items():
        slices[number] = filled(polygons, (slices.shape[1], slices.shape[2]))
    return inside


def _slice_axis(what: str, indices: Sequence[np.ndarray]) -> int:
    """The index axis along which every contour stays in one slice."""
    off = np.max([np.abs(points - np.rint(points.mean(axis=0))).max(axis=0) for points in indices], axis=0)
    axis = int(off.argmin())
    if not off[axis] <= TOLERANCE_VOXELS:
        raise BadInput(what, f"has contours {off[axis]:.2g} slices off the slices of its scan", _ELSEWHERE)
    return axis


def filled(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Boolean (rows, columns): pixels whose centre lies within an odd number of `polygons`, (n, 2) of row, column.

    Each edge crosses the rows whose centres lie between its ends, the lower one counted, and turns over all pixels to
    its right; a centre on an edge belongs to the side to the right of it. A pixel is inside when it was turned an odd
    number of times.
    """
    turns = np.zeros((shape[0], shape[1] + 1), np.int64)
    for polygon in polygons:
        row, column = polygon.T
        next_row, next_column = np.roll(polygon, -1, axis=0).T
        low, high = (np.ceil(pick(row, next_row)).astype(int) for pick in (np.minimum, np.maximum))
        low, high = np.clip(low, 0, shape[0]), np.clip(high, 0, shape[0])
        edge = np.repeat(np.arange(len(polygon)), high - low)
        at = np.arange(len(edge)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[edge]
        share = (at - row[edge]) / (next_row - row)[edge]
        crossing = column[edge] + share * (next_column - column)[edge]
        np.add.at(turns, (at, np.clip(np.ceil(crossing), 0, shape[1]).astype(int)), 1)
    return np.cumsum(turns, axis=1)[:, : shape[1]] % 2 == 1
