"""Figures of scans: contours as in the paper's Figs. 5-10, window settings, surfaces.

Every function takes plain values and returns a matplotlib `Figure` (object interface, no global state); `save` writes
it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from covidseg.figures.palette import METHOD_COLOURS, REFERENCE_COLOUR
from covidseg.figures.surfaces import VIEWS, render
from covidseg.runs.slices import Slice
from covidseg.scans.geometry import triple
from covidseg.scans.segments import COLOURS
from covidseg.system.files import atomic_path

WINDOW_HU = (-1250.0, 250.0)  # of every CT slice shown: the window that the networks see by default
WINDOWS = {  # name -> (level, width) in HU, as viewers offer them; the last one is what the networks see
    "lung": (-600.0, 1500.0),
    "ground glass": (-500.0, 800.0),
    "mediastinum": (40.0, 400.0),
    "training": (sum(WINDOW_HU) / 2, WINDOW_HU[1] - WINDOW_HU[0]),
}
PREDICTION_COLOUR = METHOD_COLOURS[2]  # where there is one method
INK, MUTED, RULE, FILL = "#1f2933", "#7b8794", "#d9dee3", "#dbe7f3"
_DPI = 150
_MARGIN_MM = 15.0  # shown around the masks
_SMALLEST_MM = 90.0  # side of the smallest field of view


def save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG or PDF, as the name says, whole or not at all; the same figure is the same file."""
    path = Path(path)
    nameless = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with atomic_path(path, suffix=path.suffix) as temporary:
        figure.savefig(temporary, dpi=_DPI, format=path.suffix[1:], metadata=nameless)
    return path


def contour_figure(
    slices: Mapping[str, Slice], dice: Mapping[str, float | None], colour: Mapping[str, str] | None = None
) -> Figure:
    """One panel for each method: the contours of the reference (red) and of its prediction on the same slice.

    `slices`: method -> `Slice` of one case and structure; `dice`: method -> whole-volume Dice of that case; `colour`:
    method -> that of its prediction. Pixels have their size in mm; the patient's right is on the left, as radiologists
    look at it.
    """
    kept = list(slices.values())
    rows_mm, columns_mm = _field_of_view([one.reference | one.prediction for one in kept], kept[0].spacing_yx)
    columns = min(len(slices), 5)
    rows = -(-len(slices) // columns)
    width = 2.5
    height = width * (rows_mm[1] - rows_mm[0]) / (columns_mm[1] - columns_mm[0]) + 0.2
    figure = new_figure(columns * width, rows * height + 0.6)
    for position, (method, one) in enumerate(slices.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        draw_slice(axes, one, (colour or {}).get(method, PREDICTION_COLOUR))
        axes.set(xlim=columns_mm, ylim=rows_mm[::-1])
        score = dice.get(method)
        axes.set_title(method if score is None else f"{method}  {score:.3f}", fontsize=9, color=INK)
    title = f"{kept[0].case}: {kept[0].structure}, slice {kept[0].z}"
    separator = "\n" if columns == 1 else " "  # a single panel is narrower than the line
    figure.suptitle(f"{title}{separator}(Dice of the whole volume)", fontsize=10, color=INK)
    lines = [
        Line2D([], [], color=REFERENCE_COLOUR, label="reference"),
        Line2D(
            [],
            [],
            color=MUTED if colour else PREDICTION_COLOUR,
            label="prediction, by method" if colour else "prediction",
        ),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_slice(axes: Axes, kept: Slice, prediction_colour: str = PREDICTION_COLOUR) -> None:
    """The CT slice in the lung window with both contours, axes in mm."""
    height, width = (size * step for size, step in zip(kept.image.shape, kept.spacing_yx, strict=True))
    low, high = WINDOW_HU
    axes.imshow(
        kept.image, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0), interpolation="bilinear", aspect=1
    )
    y, x = (
        (np.arange(-1, size + 1) + 0.5) * step for size, step in zip(kept.image.shape, kept.spacing_yx, strict=True)
    )
    for mask, colour in ((kept.prediction, prediction_colour), (kept.reference, REFERENCE_COLOUR)):
        if mask.any():
            axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linewidths=1.1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def window_strip(
    plane: np.ndarray, spacing_yx: tuple[float, float], windows: Mapping[str, tuple[float, float]]
) -> Figure:
    """One slice (y, x) in HU at several settings of level and width, as in the paper's Fig. 1.

    `windows`: name -> (level, width) in HU; what lies level - width / 2 and below is black, level + width / 2 and above
    white. A border that one setting hides another shows: that is what the contrast branch of FV is to learn.
    """
    height = 2.6 * plane.shape[0] * spacing_yx[0] / (plane.shape[1] * spacing_yx[1])
    figure = new_figure(2.6 * len(windows), height + 0.5)
    for position, (name, (level, width)) in enumerate(windows.items(), start=1):
        axes = figure.add_subplot(1, len(windows), position)
        low, high = level - width / 2, level + width / 2
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=spacing_yx[0] / spacing_yx[1])
        axes.set_title(f"{name}\nL {level:g}, W {width:g}", fontsize=9, color=INK)
        axes.axis("off")
    return figure


def surface_figure(lesion: Slice, lung: Slice | None, method: str) -> Figure:
    """Reference and prediction of one case as shaded surfaces, from the front and from the left; lungs translucent."""
    names = ("reference", method)
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for index, name in enumerate(names):
        masks = {"lesion": lesion.volumes[index]} | ({} if lung is None else {"lung": lung.volumes[index]})
        drawn |= {(name, view): render(masks, lesion.volume_spacing_zyx, view) for view in VIEWS}
    boxes = {view: _filled([drawn[name, view] for name in names]) for view in VIEWS}
    widths = [boxes[view][1].stop - boxes[view][1].start for view in VIEWS]
    heights = [max(boxes[view][0].stop - boxes[view][0].start for view in VIEWS)] * len(names)
    width = 2.6 * len(VIEWS)
    figure = new_figure(width, width * sum(heights) / sum(widths) + 1.0)
    grid = figure.add_gridspec(len(names), len(VIEWS), width_ratios=widths)
    for (name, view), picture in drawn.items():
        axes = figure.add_subplot(grid[names.index(name), VIEWS.index(view)])
        axes.imshow(picture[boxes[view]], interpolation="bilinear")
        axes.set_title(f"{name}, {view}", fontsize=9, color=INK)
        axes.set_axis_off()
    shown = ["lesion"] + (["lung"] if lung is not None else [])
    keys = [Patch(color=triple(part / 255 for part in COLOURS[name]), label=name) for name in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(lesion.case, fontsize=10, color=INK)
    return figure


def _filled(pictures: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """(rows, columns) that anything is drawn in, in any of the pictures; all where nothing is."""
    drawn = np.any([(picture < 1).any(axis=-1) for picture in pictures], axis=0)
    if not drawn.any():
        return slice(0, drawn.shape[0]), slice(0, drawn.shape[1])
    lines = [np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(max(int(line[0]) - 2, 0), int(line[-1]) + 3) for line in lines)
    return rows, columns


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _field_of_view(
    masks: Sequence[np.ndarray], spacing_yx: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(y range, x range) in mm that shows every mask with a margin, not smaller than 9 cm, inside the slice."""
    union = np.logical_or.reduce(masks)
    ranges = []
    for axis, step in enumerate(spacing_yx):
        extent = union.shape[axis] * step
        hit = np.flatnonzero(union.any(axis=1 - axis))
        low, high = (hit[0] * step, (hit[-1] + 1) * step) if hit.size else (0.0, extent)
        side = min(max(high - low + 2 * _MARGIN_MM, _SMALLEST_MM), extent)
        start = min(max((low + high - side) / 2, 0.0), extent - side)
        ranges.append((start, start + side))
    return ranges[0], ranges[1]
