"""Figures of a comparison: contours as in the paper's Figs. 5-10, scores by case, differences, curves, surfaces.

Every function takes plain values and returns a matplotlib `Figure` (object interface, no global state); `save` writes
it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from covidseg.figures.palette import METHOD_COLOURS, REFERENCE_COLOUR, colours
from covidseg.figures.surfaces import VIEWS, render
from covidseg.runs.slices import Slice
from covidseg.scans.geometry import triple
from covidseg.scans.segments import COLOURS
from covidseg.system.files import atomic_path

if TYPE_CHECKING:
    from covidseg.evaluation.agreement import Volumes
    from covidseg.evaluation.calibration import Reliability
    from covidseg.evaluation.comparison import Comparison

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
    """Write a PNG, whole or not at all."""
    with atomic_path(path, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})
    return Path(path)


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
    figure = _figure(columns * width, rows * height + 0.6)
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
    figure = _figure(2.6 * len(windows), height + 0.5)
    for position, (name, (level, width)) in enumerate(windows.items(), start=1):
        axes = figure.add_subplot(1, len(windows), position)
        low, high = level - width / 2, level + width / 2
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=spacing_yx[0] / spacing_yx[1])
        axes.set_title(f"{name}\nL {level:g}, W {width:g}", fontsize=9, color=INK)
        axes.axis("off")
    return figure


def scores_figure(scores: Mapping[str, Sequence[float]], paper: Mapping[str, float], metric: str) -> Figure:
    """Box and points of each row's per-case scores, top to bottom, with the paper's mean as a diamond."""
    figure = _figure(7.2, 0.42 * len(scores) + 1.25)
    axes = figure.add_subplot()
    shown = {row: np.asarray(values, float) for row, values in scores.items()}
    axes.boxplot(
        list(shown.values()),
        positions=range(len(shown)),
        orientation="horizontal",
        widths=0.55,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": FILL, "edgecolor": MUTED},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
        medianprops={"color": INK, "linewidth": 1.2},
    )
    jitter = np.random.default_rng(0)
    for position, values in enumerate(shown.values()):
        spread = jitter.uniform(-0.17, 0.17, len(values))
        axes.plot(values, position + spread, "o", color=METHOD_COLOURS[0], markersize=3, alpha=0.55, markeredgewidth=0)
        if len(values):
            axes.plot(values.mean(), position, "|", color=REFERENCE_COLOUR, markersize=15, markeredgewidth=2)
    for position, row in enumerate(shown):
        if row in paper:
            axes.plot(paper[row], position, "D", color="none", markeredgecolor=INK, markersize=6)
    axes.set_yticks(range(len(shown)), [f"{row}  (n={len(values)})" for row, values in shown.items()], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(metric, fontsize=9)
    _plain(axes)
    keys = [
        Patch(facecolor=FILL, edgecolor=MUTED, label="quartiles, median"),
        Line2D([], [], color=METHOD_COLOURS[0], marker="o", linestyle="", markersize=3, label="a case"),
        Line2D([], [], color=REFERENCE_COLOUR, marker="|", linestyle="", markersize=10, label="mean"),
    ]
    if paper.keys() & shown.keys():
        keys.append(
            Line2D([], [], color="none", marker="D", markeredgecolor=INK, label="the paper's mean (other data)")
        )
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def differences_figure(comparisons: "Sequence[Comparison]", titles: Mapping[str, str], metric: str) -> Figure:
    """Mean paired difference of each row from its baseline, 95 % interval; grey: too small to be detected here.

    The comparisons are of one metric.
    """
    figure = _figure(7.2, 0.42 * len(comparisons) + 1.35)
    axes = figure.add_subplot()
    for position, found in enumerate(comparisons):
        if found.detectable is not None:
            axes.barh(position, 2 * found.detectable, left=-found.detectable, height=0.5, color="#eef0f2", zorder=0)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [position, position], color=METHOD_COLOURS[0], linewidth=2.2, zorder=2)
        axes.plot(found.difference, position, "o", color=METHOD_COLOURS[0], markersize=6, zorder=3)
        told = f"{found.difference:+.3f}" + ("" if found.p_holm is None else f"   p {found.p_holm_text}")
        axes.text(1.01, position, told, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    bounds = [
        bound for found in comparisons for bound in (found.low, found.high, found.difference) if bound is not None
    ]
    reach = 1.4 * max(map(abs, bounds)) or 1.0
    axes.set_xlim(-reach, reach)  # what cannot be detected may lie far beyond
    baselines = list(dict.fromkeys(found.baseline for found in comparisons))
    names = [_pair_name(found, titles, len(baselines) > 1) for found in comparisons]
    axes.set_yticks(range(len(comparisons)), names, fontsize=9)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    against = f" from {titles.get(baselines[0], baselines[0])}" if len(baselines) == 1 else ""
    axes.set_xlabel(f"{metric}: difference{against} on the same cases", fontsize=9)
    _plain(axes)
    keys = [
        Line2D([], [], color=METHOD_COLOURS[0], marker="o", label="mean, 95 % interval"),
        Patch(color="#eef0f2", label="less than this test detects with 80 % power, corrected"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def agreement_figure(volumes: "Sequence[Volumes]", titles: Mapping[str, str], structure: str) -> Figure:
    """Bland and Altman's plot of each method: a case's difference of volumes against their mean, bias and limits."""
    columns = min(len(volumes), 5)
    rows = -(-len(volumes) // columns)
    figure = _figure(2.5 * columns, 2.2 * rows + 0.7)
    first = None
    for position, one in enumerate(volumes, start=1):
        axes = figure.add_subplot(rows, columns, position, sharex=first, sharey=first)
        first = first or axes
        predicted, reference = np.array(one.prediction_ml), np.array(one.reference_ml)
        axes.plot(
            (predicted + reference) / 2, predicted - reference, "o", color=METHOD_COLOURS[0], markersize=3, alpha=0.7
        )
        found = one.agreement
        axes.axhline(found.bias, color=REFERENCE_COLOUR, linewidth=1.2)
        for limit in (found.low, found.high):
            if limit is not None:
                axes.axhline(limit, color=MUTED, linewidth=1, linestyle="--")
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_title(titles.get(one.method, one.method), fontsize=8, color=INK)
        _plain(axes)
    figure.supxlabel(f"mean of predicted and reference {structure} volume, ml", fontsize=9)
    figure.supylabel("predicted - reference, ml", fontsize=9)
    keys = [
        Line2D([], [], color=REFERENCE_COLOUR, label="bias"),
        Line2D([], [], color=MUTED, linestyle="--", label="95 % limits of agreement"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def calibration_figure(reliabilities: "Mapping[str, Reliability]", structure: str) -> Figure:
    """Share of voxels that are of the structure against the predicted probability, a line for each method."""
    figure = _figure(5.2, 3.8)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    for colour, (method, one) in zip(colours(len(reliabilities)), reliabilities.items(), strict=True):
        predicted, found = one.curve()
        axes.plot(predicted, found, color=colour, marker="o", markersize=3, linewidth=1.2, label=method)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel(f"predicted probability of {structure}", fontsize=9)
    axes.set_ylabel("share that is", fontsize=9)
    _plain(axes)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], metrics: Sequence[str]) -> Figure:
    """Training curves: one panel for each metric, one colour for each row, one line for each of its runs.

    `curves`: row -> runs, each a mapping of `step` and metric names to equally long sequences, NaN where not logged.
    Long curves are smoothed by a running median over 5 % of their points.
    """
    figure = _figure(4.6 * len(metrics), 3.6)
    for position, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(1, len(metrics), position)
        for colour, runs in zip(colours(len(curves)), curves.values(), strict=True):
            for run in runs:
                if metric not in run:
                    continue
                step, values = np.asarray(run["step"], float), np.asarray(run[metric], float)
                step, values = step[np.isfinite(values)], values[np.isfinite(values)]
                marker = "o" if len(values) <= 40 else None
                axes.plot(step, _running_median(values), color=colour, marker=marker, markersize=2.5, linewidth=1.2)
        axes.set_xlabel("optimiser step", fontsize=9)
        axes.set_title(metric, fontsize=10, color=INK)
        _plain(axes)
    keys = [Line2D([], [], color=colour, label=row) for colour, row in zip(colours(len(curves)), curves, strict=True)]
    figure.legend(handles=keys, loc="outside right center", frameon=False, fontsize=8)
    return figure


def surface_figure(lesion: Slice, lung: Slice | None, method: str) -> Figure:
    """Reference and prediction of one case as shaded surfaces, from the front and from the left; lungs translucent."""
    figure = _figure(2.6 * len(VIEWS), 5.4)
    for row, (name, index) in enumerate((("reference", 0), (method, 1))):
        masks = {"lesion": lesion.volumes[index]} | ({} if lung is None else {"lung": lung.volumes[index]})
        for column, view in enumerate(VIEWS):
            axes = figure.add_subplot(2, len(VIEWS), row * len(VIEWS) + column + 1)
            axes.imshow(render(masks, lesion.volume_spacing_zyx, view), interpolation="bilinear")
            axes.set_title(f"{name}, {view}", fontsize=9, color=INK)
            axes.set_axis_off()
    shown = ["lesion"] + (["lung"] if lung is not None else [])
    keys = [Patch(color=triple(part / 255 for part in COLOURS[name]), label=name) for name in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(lesion.case, fontsize=10, color=INK)
    return figure


def _pair_name(found: "Comparison", titles: Mapping[str, str], several_baselines: bool) -> str:
    name = titles.get(found.row, found.row)
    against = f" - {titles.get(found.baseline, found.baseline)}" if several_baselines else ""
    return f"{name}{against}  (n={found.n})"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8, length=0, axis="both")
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _running_median(values: np.ndarray) -> np.ndarray:
    width = len(values) // 40 * 2 + 1  # 5 % of the curve; nothing for short ones
    if width < 3:
        return values
    padded = np.pad(values, width // 2, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


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
