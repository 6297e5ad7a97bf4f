"""How a prepared array relates to its scan: turned to (S, P, L), cropped to the body, resampled; and the way back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from scipy import ndimage

from covidseg.scans.geometry import Geometry, triple

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

BODY_HU = -500  # between soft tissue and fat (> -150) and air; the lungs lie inside the box of what surrounds them
COARSE_MM = 4.0
BODY_MARGIN_MM = 10.0
BODY_PART = (
    0.1  # pieces of at least this share of the largest belong to the body: two walls of a crop without mediastinum
)
CHUNK_VOXELS = 2**24  # of float32 held at a time on the way back to the scan's grid


@dataclass(frozen=True)
class Grid:
    """The grid of a prepared case.

    `box_zyx` is the half-open body box in voxels of the canonical native grid; that box and the prepared array of
    `shape_zyx` cover the same millimetres, so `spacing_zyx` is the one asked for up to the rounding of the shape.
    """

    native: Geometry
    box_zyx: Box
    shape_zyx: tuple[int, int, int]
    spacing_zyx: tuple[float, float, float]
    body_found: bool = True

    @classmethod
    def plan(
        cls, hu: np.ndarray, geometry: Geometry, spacing_zyx: tuple[float, float, float], box: Box | None = None
    ) -> Self:
        """Lay the grid of a scan: `hu` (z, y, x) in its native order, `spacing_zyx` in mm, canonical order.

        `box`: what is kept, in voxels of the canonical order; None for that of the body. Where there is no body (all
        air), the box is the whole volume and `body_found` is False.
        """
        canonical = geometry.canonical()
        box = box or body_box(geometry.to_canonical(hu), canonical.spacing_zyx)
        whole = triple((0, n) for n in canonical.shape_zyx)
        extent = [(b - a) * mm for (a, b), mm in zip(box or whole, canonical.spacing_zyx, strict=True)]
        shape = triple(max(1, round(mm / step)) for mm, step in zip(extent, spacing_zyx, strict=True))
        spacing = triple(mm / n for mm, n in zip(extent, shape, strict=True))
        return cls(geometry, box or whole, shape, spacing, box is not None)

    def image(self, hu: np.ndarray) -> np.ndarray:
        """Scan (z, y, x) in native order -> int16 HU on this grid; linear, averaging where the grid is coarser."""
        volume = self._crop(hu)
        prepared = np.empty(self.shape_zyx, np.int16)
        for z, plane in self._planes(volume.shape, volume.__getitem__):
            prepared[z] = np.rint(plane)
        return prepared

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Label map in native order -> uint8 on this grid: each class resampled like the image, then the largest."""
        volume = self._crop(labels)
        prepared = np.zeros(self.shape_zyx, np.uint8)
        values = [int(value) for value in np.unique(volume) if value]
        if not values:
            return prepared
        classes = [self._planes(volume.shape, partial(_plane_of, volume, value)) for value in values]
        table = np.array([0, *values], np.uint8)
        for planes in zip(*classes, strict=True):
            shares = np.stack([plane for _, plane in planes])
            prepared[planes[0][0]] = table[
                np.argmax(np.concatenate([1 - shares.sum(0, keepdims=True), shares]), axis=0)
            ]
        return prepared

    def scores_to_native(self, scores: Any) -> np.ndarray:
        """Class scores (C, z, y, x) on this grid, tensor on any device or array -> uint8 argmax in native order.

        Scores are interpolated linearly, a slab of slices at a time, and only then compared; outside the body box all
        is class 0. Works on the differences to class 0, which have the same argmax, so two classes cost one channel.
        """
        import torch

        def classes(slab: Any) -> Any:
            best, label = slab.max(dim=0)
            return torch.where(best > 0, label + 1, 0).to(torch.uint8)

        return self._slabs_to_native(scores, classes, np.uint8)

    def probabilities_to_native(self, scores: Any, channels: Sequence[int]) -> np.ndarray:
        """Logits (C, z, y, x) on this grid -> float32 probability of being one of the classes `channels`, native order.

        The logits are brought back as `scores_to_native` does and only then made probabilities, so that with two
        classes the mask is where this is above a half. Outside the body box it is 0.
        """

        def probability(slab: Any) -> Any:
            import torch

            shares = torch.cat([torch.zeros_like(slab[:1]), slab]).softmax(dim=0)
            return shares[list(channels)].sum(dim=0)

        return self._slabs_to_native(scores, probability, np.float32)

    def _slabs_to_native(self, scores: Any, value: Callable[[Any], Any], dtype: Any) -> np.ndarray:
        """`value` of each slab (C - 1, z, y, x) of differences to class 0 on the scan's grid, 0 outside the box."""
        import torch
        from torch.nn.functional import interpolate

        scores = torch.as_tensor(scores)
        if scores.ndim != 4 or scores.shape[0] < 2 or tuple(scores.shape[1:]) != self.shape_zyx:
            raise ValueError(f"scores of shape {tuple(scores.shape)} are not (2 or more classes, *{self.shape_zyx})")
        canonical = self.native.canonical()
        native = np.zeros(canonical.shape_zyx, dtype)
        inside = native[tuple(slice(a, b) for a, b in self.box_zyx)]
        depth, height, width = inside.shape
        index, weight = (torch.as_tensor(part, device=scores.device) for part in _two_taps(self.shape_zyx[0], depth))
        step = max(1, CHUNK_VOXELS // (scores.shape[0] * height * width))
        with torch.inference_mode():
            for start in range(0, depth, step):
                below, above = index[:, start : start + step]
                share = weight[start : start + step, None, None]
                first, last = int(below[0]), int(above[-1]) + 1
                slab = scores[:, first:last].float()
                slab = slab[1:] - slab[:1]  # (C - 1, z, y, x)
                slab = slab[:, below - first] * (1 - share) + slab[:, above - first] * share
                slab = interpolate(slab, size=(height, width), mode="bilinear", align_corners=False)
                inside[start : start + step] = value(slab).cpu().numpy()
        return np.ascontiguousarray(self.native.from_canonical(native))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; `from_dict` gives back an equal Grid."""
        return {
            "native": self.native.to_dict(),
            "box_zyx": [list(side) for side in self.box_zyx],
            "shape_zyx": list(self.shape_zyx),
            "spacing_zyx": list(self.spacing_zyx),
            "body_found": self.body_found,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        return cls(
            native=Geometry.from_dict(plain["native"]),
            box_zyx=triple((low, high) for low, high in plain["box_zyx"]),
            shape_zyx=triple(plain["shape_zyx"]),
            spacing_zyx=triple(plain["spacing_zyx"]),
            body_found=plain["body_found"],
        )

    def _crop(self, array: np.ndarray) -> np.ndarray:
        return self.native.to_canonical(array)[tuple(slice(a, b) for a, b in self.box_zyx)]

    def _planes(self, shape_in: tuple[int, ...], plane: Callable[[int], np.ndarray]):
        """Yield (z, float32 plane) of the resampled volume whose input planes `plane(z)` gives."""
        (iz, wz), (iy, wy), (ix, wx) = (_taps(n, m) for n, m in zip(shape_in, self.shape_zyx, strict=True))
        for z in range(self.shape_zyx[0]):
            slab = _weighted([plane(i) for i in iz[:, z]], wz[:, z])
            slab = _weighted([slab[i] for i in iy], wy[:, :, None])
            yield z, _weighted([slab[:, i] for i in ix], wx[:, None, :])


def _plane_of(volume: np.ndarray, value: int, z: int) -> np.ndarray:
    return volume[z] == value


def body_box(hu: np.ndarray, spacing_zyx: tuple[float, float, float]) -> Box | None:
    """Half-open box of the patient in `hu` (z, y, x), with a margin of 10 mm; None when all is air."""
    coarse, steps = coarsened(hu, spacing_zyx)
    components, count = ndimage.label(coarse > BODY_HU)
    if count == 0 and min(hu.shape) > 0:  # thinner than a coarse voxel, or nothing there
        components, count = ndimage.label(hu > BODY_HU)
        steps = [1, 1, 1]
    if count == 0:
        return None
    sizes = np.bincount(components.ravel())[1:]
    parts = [
        part
        for part, size in zip(ndimage.find_objects(components), sizes, strict=True)
        if size >= BODY_PART * sizes.max()
    ]
    extent = [(min(part[axis].start for part in parts), max(part[axis].stop for part in parts)) for axis in range(3)]
    return widened(extent, steps, hu.shape, spacing_zyx, (BODY_MARGIN_MM,) * 3)


def coarsened(hu: np.ndarray, spacing_zyx: Sequence[float]) -> tuple[np.ndarray, list[int]]:
    """A view of every so many voxels, about `COARSE_MM` apart, and how many along each axis."""
    steps = [max(1, round(COARSE_MM / mm)) for mm in spacing_zyx]
    return hu[tuple(slice(step // 2, None, step) for step in steps)], steps


def widened(
    extent: Sequence[tuple[int, int]],
    steps: Sequence[int],
    shape_zyx: Sequence[int],
    spacing_zyx: Sequence[float],
    margin_mm: Sequence[float],
) -> Box:
    """The box in voxels of the scan of a half-open range of `coarsened` ones, and so much around it as there is."""
    box = []
    for (first, last), step, length, mm, wanted in zip(extent, steps, shape_zyx, spacing_zyx, margin_mm, strict=True):
        margin = round(wanted / mm) + step
        box.append((max(0, first * step - margin), min(length, last * step + margin)))
    return triple(box)


def _taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (taps, n_out) that resample a line: linear, edges of both lines aligned (half-voxel centres).

    When the output is coarser, the triangle is as wide as its voxel, so that all input voxels count and noise does not
    alias; otherwise this is plain linear interpolation.
    """
    scale = n_in / n_out
    support = max(scale, 1.0)
    centre = (np.arange(n_out) + 0.5) * scale - 0.5
    index = np.floor(centre - support).astype(int) + 1 + np.arange(int(np.ceil(2 * support)))[:, None]
    weight = np.clip(1 - np.abs(index - centre) / support, 0, None) * ((index >= 0) & (index < n_in))
    used = weight.any(axis=1)
    weight = weight[used] / weight.sum(axis=0)
    return np.clip(index[used], 0, n_in - 1), weight.astype(np.float32)


def _two_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain linear interpolation: indices (2, n_out) of the lower and upper neighbour, weight (n_out,) of the upper."""
    centre = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    below = np.floor(centre).astype(np.int64)
    return np.stack([below, np.minimum(below + 1, n_in - 1)]), (centre - below).astype(np.float32)


def _weighted(parts: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Sum of `parts`, each times its row of `weights`; parts that count nowhere are skipped."""
    total = np.zeros(parts[0].shape, np.float32)
    for part, weight in zip(parts, weights, strict=True):
        if weight.any():
            total += part * weight
    return total
