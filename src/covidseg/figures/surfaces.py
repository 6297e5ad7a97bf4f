"""Shaded surfaces of masks, by a small ray caster that needs neither a display nor OpenGL."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from covidseg.scans.segments import COLOURS

VIEWS = ("from the front", "from the left")
_LUNG_OPACITY = 0.35
_PIXEL_MM = 2.0


def render(masks: Mapping[str, np.ndarray], spacing_zyx: Sequence[float], view: str) -> np.ndarray:
    """RGB picture (rows, columns, 3) in [0, 1] of `lesion` (opaque) and `lung` (translucent, optional) masks.

    Masks are (z, y, x) bool with axes to Superior, Posterior, Left; `view` is one of `VIEWS`, head up. Drawn are the
    first hits along one axis, lit from the viewer's upper left by the gradient of the smoothed mask.
    """
    depth_axis = 1 if view == VIEWS[0] else 2
    picture: np.ndarray | None = None
    for name in ("lesion", "lung"):
        if name not in masks:
            continue
        zoom = [step / _PIXEL_MM for step in spacing_zyx]
        field = ndimage.zoom(np.pad(masks[name], 2).astype(np.float32), zoom, order=1)
        field = ndimage.gaussian_filter(field, 1.2)
        if view == VIEWS[1]:
            field = field[:, :, ::-1]  # look from the patient's left: Left is the far end of x
        hit, light = _first_hits(np.moveaxis(field, depth_axis, 0))
        hit, light = hit[::-1], light[::-1]  # head up
        colour = np.array(COLOURS[name]) / 255
        shaded = np.clip(light[..., None] * colour, 0, 1)
        if picture is None:
            picture = np.ones((*hit.shape, 3))
        opacity = hit[..., None] * (1.0 if name == "lesion" else _LUNG_OPACITY)
        picture = picture * (1 - opacity) + shaded * opacity
    assert picture is not None  # some structure was given
    return picture


def _first_hits(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a ray along axis 0 meets `field` >= 0.5 (rows, columns), and the brightness of the surface there."""
    inside = field >= 0.5
    hit = inside.any(axis=0)
    depth = inside.argmax(axis=0)
    row, column = np.indices(depth.shape)
    at = np.stack([depth, row, column])
    last = np.array(field.shape).reshape(3, 1, 1) - 1
    ahead = [field[tuple(np.minimum(at + step, last))] for step in np.eye(3, dtype=int).reshape(3, 3, 1, 1)]
    behind = [field[tuple(np.maximum(at - step, 0))] for step in np.eye(3, dtype=int).reshape(3, 3, 1, 1)]
    normal = np.stack(behind) - np.stack(ahead)
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    light = np.array([-0.8, 0.45, -0.4])  # towards the viewer, up, left
    cosine = np.tensordot(light / np.linalg.norm(light), normal, axes=1)
    return np.asarray(hit), 0.45 + 0.75 * np.clip(cosine, 0, 1)
