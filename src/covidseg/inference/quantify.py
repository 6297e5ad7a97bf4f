"""The clinical figures people expect beside a mask: volumes, infection share, density, zone score, MosMed class.

All of them are descriptive and made by simple rules, some approximate (see `NOTES`). Research use only.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

from covidseg.evaluation.flags import EIGHT_BIT, EIGHT_BIT_VALUES, NO_LUNG_MASK, NOT_TOLD_APART, grey_values
from covidseg.scans.geometry import Geometry, union_box

NOTICE = "Research use only. Not for diagnosis or treatment."
NOTES = (
    "infection share = volume of (lesion AND lung) / volume of (lung OR lesion)",
    "left and right lung: approximation, see left_right_method",
    "zones: approximation, thirds of each lung's height, not anatomical landmarks",
    "zone score 0 for no lesion, then 1 below 25 %, 2 below 50 %, 3 below 75 %, 4 from 75 % of the zone",
    "MosMed class from the infection share: CT-0 none, CT-1 below 25 %, CT-2 below 50 %, CT-3 to 75 %, CT-4 above",
)
SIDES, ZONES = ("right", "left"), ("upper", "middle", "lower")
FIGURES = (
    *("lung_ml", "right_lung_ml", "left_lung_ml", "lesion_ml", "lesion_outside_lung_ml"),
    *("infection_share", "right_infection_share", "left_infection_share"),
    *("ground_glass_ml", "consolidation_ml", "consolidation_share"),
    *(f"zone_{side}_{zone}" for side in SIDES for zone in ZONES),
    *("zone_score", "mosmed_class"),
)
ONE_SIDED = 0.9  # a piece of lung with this share of its volume on one side of the midline belongs to that side
VALLEY = 1 / 3  # of the widest section on either side: what the plane between touching lungs may hold at most
TISSUE_HU = -500  # what is denser is the patient's body: the midline is taken from it


def quantify(
    lung: np.ndarray | None, lesion: np.ndarray | None, hu: np.ndarray, geometry: Geometry, consolidation_hu: float
) -> dict[str, Any]:
    """The figures `FIGURES` of one scan, None where undefined; `undefined`: {figure: reason}; `left_right_method`.

    `lung` (the entire lung) and `lesion`: boolean (z, y, x) on `geometry`, or None where there is no such mask; `hu`:
    the scan on the same grid. Lesion below `consolidation_hu` is ground glass, from there on consolidation.
    """
    for name, array in (("lung", lung), ("lesion", lesion), ("scan", hu)):
        if array is not None and array.shape != geometry.shape_zyx:
            raise ValueError(f"{name} of shape {array.shape} is not on the grid {geometry.shape_zyx}")
    voxel_ml = float(np.prod(geometry.spacing_zyx)) / 1000
    figures: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    if lesion is None:
        undefined.update(dict.fromkeys(FIGURES[3:], "no lesion mask"))
    else:
        figures["lesion_ml"] = _count(lesion) * voxel_ml
        _densities(figures, undefined, lesion, hu, consolidation_hu, voxel_ml)
    if lung is None:
        undefined.update({name: NO_LUNG_MASK for name in FIGURES if name not in figures and name not in undefined})
    else:
        figures["lung_ml"] = _count(lung) * voxel_ml
        if lung.any():
            turned = None if lesion is None else geometry.to_canonical(lesion)
            _regions(figures, undefined, geometry.to_canonical(lung), turned, geometry.to_canonical(hu), voxel_ml)
        undefined.update({name: "no lung found" for name in FIGURES if name not in figures and name not in undefined})
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    return {**dict.fromkeys((*FIGURES, "left_right_method")), **rounded, "undefined": undefined}


def split_lungs(lung: np.ndarray, midline: int) -> tuple[np.ndarray | None, str]:
    """(which voxels of the lungs are the left one, how that was decided); `lung` boolean in canonical order (S, P, L).

    Connected pieces go to the side of column `midline` they lie on. Lungs that touch make one piece on both sides, cut
    by the sagittal plane near the midline that holds the least lung, provided it holds much less than each side does;
    one lung in the middle of a cropped scan has no such plane, and None is returned.
    """
    pieces, count = ndimage.label(lung)
    width = lung.shape[2]
    midline = int(np.clip(midline, 0, width))
    profile = np.stack([np.bincount(pieces[:, :, x].ravel(), minlength=count + 1) for x in range(width)])
    share_left = profile[midline:].sum(axis=0) / np.maximum(profile.sum(axis=0), 1)  # of each piece
    share_left[0] = 0  # not lung
    left = _of_pieces(pieces, share_left >= 0.5)
    touching = (share_left > 1 - ONE_SIDED) & (share_left < ONE_SIDED)
    if not touching.any():
        return left, "connected components"
    columns = np.arange(max(midline - width // 8, 0), min(midline + width // 8 + 1, width))
    least = profile[columns][:, touching].sum(axis=1)
    plane = min(columns[least == least.min()], key=lambda column: abs(column - midline))
    area = profile[:, touching].sum(axis=1)
    if least.min() > VALLEY * min(area[:plane].max(initial=0), area[plane:].max(initial=0)):
        return None, NOT_TOLD_APART
    both = _of_pieces(pieces, touching)
    left[both] = False
    left[:, :, plane:] |= both[:, :, plane:]
    return left, "sagittal plane of least lung near the midline"


def _of_pieces(pieces: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which voxels belong to a chosen piece, slice by slice: numpy makes eight bytes of every index."""
    found = np.empty(pieces.shape, bool)
    for z, plane in enumerate(pieces):
        found[z] = chosen[plane]
    return found


def zone_score(share: float) -> int:
    """0 to 4 of one zone with this share of lesion: none, < 25 %, < 50 %, < 75 %, more."""
    return 0 if share == 0 else 1 + (share >= 0.25) + (share >= 0.5) + (share >= 0.75)


def mosmed_class(share: float) -> str:
    """CT-0 to CT-4 of MosMedData: no lesion, < 25 %, 25 to 50 %, 50 to 75 %, > 75 % of the lungs."""
    return "CT-0" if share == 0 else f"CT-{1 + (share >= 0.25) + (share >= 0.5) + (share > 0.75)}"


def _densities(
    figures: dict, undefined: dict, lesion: np.ndarray, hu: np.ndarray, consolidation_hu: float, voxel_ml: float
) -> None:
    if grey_values(hu) <= EIGHT_BIT_VALUES:
        names = ("ground_glass_ml", "consolidation_ml", "consolidation_share")
        undefined.update(dict.fromkeys(names, EIGHT_BIT))
        return
    total, dense = _count(lesion), _count(hu[lesion] >= consolidation_hu)
    figures["ground_glass_ml"], figures["consolidation_ml"] = (total - dense) * voxel_ml, dense * voxel_ml
    if total:
        figures["consolidation_share"] = dense / total
    else:
        undefined["consolidation_share"] = "no lesion found"


def _regions(
    figures: dict, undefined: dict, lung: np.ndarray, lesion: np.ndarray | None, hu: np.ndarray, voxel_ml: float
) -> None:
    """What depends on the side and the height; arrays in canonical order (S, P, L), some lung."""
    box = union_box(lung) if lesion is None else union_box(lung, lesion)
    midline = _midline(hu[box[0]]) - box[2].start
    lung = lung[box]
    lesion = np.zeros(lung.shape, bool) if lesion is None else lesion[box]
    whole, affected = lung | lesion, lung & lesion
    left, figures["left_right_method"] = split_lungs(whole, midline)
    if left is None:
        sided = [name for name in FIGURES if name.startswith((*SIDES, "zone_"))]
        undefined.update({name: figures["left_right_method"] for name in sided if name not in undefined})
    for side, region in () if left is None else (("right", whole & ~left), ("left", left)):
        figures[f"{side}_lung_ml"] = _count(region & lung) * voxel_ml
        if "lesion_ml" not in figures:
            continue
        names = (f"{side}_infection_share", *(f"zone_{side}_{zone}" for zone in ZONES), "zone_score")
        if not region.any():
            undefined.update(dict.fromkeys(names, f"no {side} lung found"))
            continue
        figures[f"{side}_infection_share"] = _share(affected, region)
        for zone, slab in zip(ZONES, _thirds(region), strict=True):
            figures[f"zone_{side}_{zone}"] = zone_score(_share(affected[slab], region[slab]))
    if "lesion_ml" in figures:
        figures["lesion_outside_lung_ml"] = _count(lesion & ~lung) * voxel_ml
        figures["infection_share"] = _share(affected, whole)
        figures["mosmed_class"] = mosmed_class(figures["infection_share"])
        if "zone_score" not in undefined:
            figures["zone_score"] = sum(figures[f"zone_{side}_{zone}"] for side in SIDES for zone in ZONES)


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _share(affected: np.ndarray, region: np.ndarray) -> float:
    return _count(affected & region) / max(_count(region), 1)


def _thirds(region: np.ndarray) -> list[slice]:
    """Slices of the upper, middle and lower third of a region's height; axis 0 grows upwards."""
    height = union_box(region)[0]
    edges = np.rint(np.linspace(height.stop, height.start, 4)).astype(int)
    return [slice(low, high) for high, low in pairwise(edges)]


def _midline(hu: np.ndarray) -> int:
    """Column that halves the body, from every fourth voxel."""
    columns = np.count_nonzero(hu[::4, ::4] > TISSUE_HU, axis=(0, 1)).cumsum()
    return int(np.searchsorted(columns, columns[-1] / 2)) if columns[-1] else hu.shape[2] // 2
