"""Shaded surfaces of masks without a display: pyvista where it is installed and works, a small ray caster otherwise.

pyvista runs in a process of its own because VTK without an OpenGL library does not raise, it crashes.
"""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

VIEWS = ("from the front", "from the left")
COLOURS = {"lesion": "#d1495b", "lung": "#8fb8de"}
_LUNG_OPACITY = 0.35
_PIXEL_MM = 2.0
_TIMEOUT_S = 120


def render(masks: Mapping[str, np.ndarray], spacing_zyx: Sequence[float], view: str) -> np.ndarray:
    """RGB picture (rows, columns, 3) in [0, 1] of `lesion` (opaque) and `lung` (translucent, optional) masks.

    Masks are (z, y, x) bool with axes to Superior, Posterior, Left; `view` is one of `VIEWS`, head up.
    """
    if importlib.util.find_spec("pyvista") and (picture := _render_with_pyvista(masks, spacing_zyx, view)) is not None:
        return picture
    return ray_cast(masks, spacing_zyx, view)


def ray_cast(masks: Mapping[str, np.ndarray], spacing_zyx: Sequence[float], view: str) -> np.ndarray:
    """`render` by first hits along one axis, lit from the viewer's upper left by the gradient of the smoothed mask."""
    depth_axis = 1 if view == VIEWS[0] else 2
    picture = None
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
        colour = np.array([int(COLOURS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        shaded = np.clip(light[..., None] * colour, 0, 1)
        if picture is None:
            picture = np.ones((*hit.shape, 3))
        opacity = hit[..., None] * (1.0 if name == "lesion" else _LUNG_OPACITY)
        picture = picture * (1 - opacity) + shaded * opacity
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
    return hit, 0.45 + 0.75 * np.clip(cosine, 0, 1)


def _render_with_pyvista(masks: Mapping[str, np.ndarray], spacing_zyx: Sequence[float], view: str) -> np.ndarray | None:
    """The picture, or None if the rendering process fails in any way, a crash included."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "masks.npz", Path(folder) / "picture.npy"
        np.savez(source, spacing_zyx=spacing_zyx, **masks)
        command = [sys.executable, "-m", "covidseg.figures.surfaces", str(source), str(result), str(VIEWS.index(view))]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
            return np.load(result)
        except (subprocess.SubprocessError, OSError):
            return None


def _pyvista_main(source: str, result: str, view: str) -> None:
    import pyvista

    plotter = pyvista.Plotter(off_screen=True, window_size=(640, 640))
    plotter.set_background("white")
    with np.load(source) as archive:
        z, y, x = (float(step) for step in archive["spacing_zyx"])
        for name in ("lesion", "lung"):
            if name not in archive or not archive[name].any():
                continue
            field = ndimage.gaussian_filter(np.pad(archive[name], 2).astype(np.float32), 0.7)
            grid = pyvista.ImageData(dimensions=field.shape[::-1], spacing=(x, y, z))
            grid.point_data["values"] = field.ravel()  # VTK runs x fastest, as (z, y, x) in C order does
            surface = grid.contour([0.5], "values", method="flying_edges").smooth_taubin(20)
            opacity = 1.0 if name == "lesion" else _LUNG_OPACITY
            plotter.add_mesh(surface, color=COLOURS[name], opacity=opacity, smooth_shading=True, show_scalar_bar=False)
    direction = (0, -1, 0) if view == "0" else (1, 0, 0)  # no depth peeling: Mesa drops translucent meshes with it
    plotter.view_vector(direction, viewup=(0, 0, 1))
    plotter.enable_parallel_projection()
    picture = plotter.screenshot(return_img=True)
    plotter.close()
    np.save(result, picture[..., :3] / 255.0)


if __name__ == "__main__":
    _pyvista_main(*sys.argv[1:])
