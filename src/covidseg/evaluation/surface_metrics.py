"""Surface Dice and HD95 of two masks by growing offsets: most of a surface lies next to the other surface.

A distance transform visits every voxel of the box, a search tree descends once for each surface voxel. Here the surface
voxels of one mask are looked up in the other one's surface at the offset (0, 0, 0), at the nearest neighbours, and so
on outwards, and each leaves the list when it is met. Offsets come in order of their distance: so distances are exact,
and the percentile is known as soon as enough voxels were met. What lies far from the other surface is left to the tree.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

_SHARE = 0.95  # HD95
_MAX_OFFSETS = 800  # of the ball that is looked through: for as many look-ups a voxel could descend the tree
_ROUND, _WORTHWHILE = 25, 0.02  # a round of offsets that meets less than this share of what is left is the last one


def surface_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing_zyx: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """(NSD, HD95 in mm) of two boolean masks (z, y, x) of one shape, neither of them empty.

    NSD is the share of both surfaces within `tolerance_mm` of the other one. Its surface elements lie between voxels,
    each with the area of the surface through its eight neighbours, as in the benchmark of COVID-19-CT-Seg. HD95 is the
    greater of the two directed 95th percentiles of the distances between border voxels, those of which one of the six
    neighbours lies outside the mask.
    """
    spacing = tuple(float(step) for step in spacing_zyx)
    pair = [np.pad(mask, 1) for mask in (prediction, reference)]
    return _surface_dice(pair, spacing, tolerance_mm), _hd95(pair, spacing)


def _surface_dice(pair: Sequence[np.ndarray], spacing: tuple[float, ...], tolerance_mm: float) -> float:
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area as area_table  # a second of import

    area_of = np.asarray(area_table(spacing)[0], np.float64)  # mm2 by the code of the eight neighbours
    offsets, _ = _ball(spacing, tolerance_mm)
    codes = [np.pad(_neighbour_codes(mask), _reach(offsets)) for mask in pair]
    surfaces = [(code != 0) & (code != 255) for code in codes]
    near = total = 0.0
    for code, own, other in zip(codes, surfaces, surfaces[::-1], strict=True):
        left = np.flatnonzero(own)
        area = area_of[code.ravel()[left]].sum()
        for step in _flat(offsets, own.shape):
            left = _unmet(left, other, step)
        near += area - area_of[code.ravel()[left]].sum()
        total += area
    return float(near / total)


def _hd95(pair: Sequence[np.ndarray], spacing: tuple[float, ...]) -> float:
    radius = (3 / (4 * math.pi) * _MAX_OFFSETS * math.prod(spacing)) ** (1 / 3)
    offsets, distances = _ball(spacing, radius)
    borders = [np.pad(_border(mask), _reach(offsets)) for mask in pair]
    steps = _flat(offsets, borders[0].shape)
    return max(
        _percentile(own, other, spacing, steps, distances) for own, other in zip(borders, borders[::-1], strict=True)
    )


def _percentile(
    own: np.ndarray, other: np.ndarray, spacing: tuple[float, ...], steps: Sequence[int], distances: np.ndarray
) -> float:
    """The 95th percentile, as numpy interpolates it, of the distances from the voxels of `own` to those of `other`."""
    left = np.flatnonzero(own)
    count = left.size
    position = _SHARE * (count - 1)
    below, above = math.floor(position), math.ceil(position)  # places in the order of the distances
    value = {}
    before_round = count
    for number, (step, distance) in enumerate(zip(steps, distances, strict=True), start=1):
        left = _unmet(left, other, step)
        for place in (below, above):
            if place not in value and place < count - left.size:
                value[place] = distance
        if above in value:
            break
        if number % _ROUND == 0:
            if before_round - left.size < _WORTHWHILE * before_round:
                break
            before_round = left.size
    if above not in value:
        far = _tree_distances(left, other, spacing)
        far.partition(sorted({max(place - count + left.size, 0) for place in (below, above)}))
        for place in (below, above):
            value.setdefault(place, far[place - count + left.size])
    return float(value[below] + (value[above] - value[below]) * (position - below))


def _tree_distances(points: np.ndarray, target: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """mm from each voxel of `points`, places in the flat array, to the nearest True voxel of `target`."""
    scale = np.asarray(spacing)
    tree = KDTree(np.argwhere(target) * scale, balanced_tree=False, compact_nodes=False)
    return tree.query(np.stack(np.unravel_index(points, target.shape), axis=1) * scale)[0]


def _unmet(points: np.ndarray, target: np.ndarray, step: int) -> np.ndarray:
    """Those of `points`, places in the flat array, at whose `step` the target is not."""
    return points[~target.ravel()[points + step]]


def _ball(spacing: tuple[float, ...], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (N, 3) in voxels of at most `radius` mm, and their lengths in mm, nearest first."""
    reach = [int(radius / step * (1 + 1e-9)) for step in spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = np.sqrt(((offsets * np.asarray(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius * (1 + 1e-9)]  # 5 x 0.6 mm are 3 mm
    return offsets[order], lengths[order]


def _reach(offsets: np.ndarray) -> list[tuple[int, int]]:
    """How many voxels an array has to be padded so that no offset leads out of it."""
    return [(int(n), int(n)) for n in np.abs(offsets).max(axis=0)]


def _flat(offsets: np.ndarray, shape: tuple[int, ...]) -> list[int]:
    """The offsets as distances in the flat array."""
    return (offsets @ np.array([shape[1] * shape[2], shape[2], 1])).tolist()


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """For each corner that eight voxels share, which of them are in the mask: the bits of a byte, first voxel first."""
    x = mask[..., :-1].view(np.uint8) << 1 | mask[..., 1:]
    y = x[:, :-1] << 2 | x[:, 1:]
    return y[:-1] << 4 | y[1:]


def _border(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask, empty at its outer faces, with one of six neighbours outside it."""
    inner = mask[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for shift in (slice(None, -2), slice(2, None)):
            box = [slice(1, -1)] * 3
            box[axis] = shift
            inner &= mask[tuple(box)]
    border = mask.copy()
    border[1:-1, 1:-1, 1:-1] ^= inner
    return border
