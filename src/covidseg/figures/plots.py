"""Plots of a comparison: scores by case, paired lines, differences, costs, volumes, probabilities, curves.

Every function takes plain values and returns a matplotlib `Figure`; `overlays.save` writes it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from covidseg.figures.overlays import FILL, INK, MUTED, RULE, new_figure
from covidseg.figures.palette import METHOD_COLOURS, REFERENCE_COLOUR, colours

if TYPE_CHECKING:
    from covidseg.evaluation.agreement import Volumes
    from covidseg.evaluation.calibration import Reliability
    from covidseg.evaluation.comparison import Comparison


def scores_figure(scores: Mapping[str, Sequence[float]], paper: Mapping[str, float], metric: str) -> Figure:
    """Box and points of each row's per-case scores, top to bottom, with the paper's mean as a diamond."""
    figure = new_figure(7.2, 0.42 * len(scores) + 1.25)
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


def paired_figure(scores: Mapping[str, Mapping[str, float]], metric: str) -> Figure:
    """A line for each case through its scores in every row, left to right, and the rows' means.

    `scores`: row -> case -> score. A row that is better for most cases has most lines rise to it, whatever their level.
    """
    figure = new_figure(max(3.0, 0.75 * len(scores) + 1.6), 3.6)
    axes = figure.add_subplot()
    cases = list(dict.fromkeys(case for own in scores.values() for case in own))
    for case in cases:
        values = [own.get(case, np.nan) for own in scores.values()]
        axes.plot(range(len(scores)), values, color=MUTED, linewidth=0.8, alpha=0.6, marker="o", markersize=2.5)
    means = [float(np.mean(list(own.values()))) if own else np.nan for own in scores.values()]
    axes.plot(range(len(scores)), means, color=REFERENCE_COLOUR, linewidth=1.6, marker="_", markersize=14)
    axes.set_xticks(range(len(scores)), list(scores), rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(metric, fontsize=9)
    _plain(axes, "y")
    keys = [
        Line2D([], [], color=MUTED, marker="o", markersize=2.5, label="a case"),
        Line2D([], [], color=REFERENCE_COLOUR, marker="_", label="mean"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def costs_figure(costs: Mapping[str, tuple[float, float, float, float | None, float | None]], metric: str) -> Figure:
    """Score against what a network costs: a point for each row at its multiply-adds, as large as its parameters.

    `costs`: row -> (multiply-adds of one patch, parameters, mean score, and its interval or None twice).
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    most = max(parameters for _, parameters, *_ in costs.values())
    for colour, (row, (cost, parameters, mean, low, high)) in zip(colours(len(costs)), costs.items(), strict=True):
        label = f"{row}  ({parameters / 1e6:.2g} M)"
        size = 20 + 180 * parameters / most
        axes.scatter(cost / 1e9, mean, s=size, color=colour, edgecolors=INK, linewidths=0.5, label=label, zorder=3)
        if low is not None and high is not None:
            axes.plot([cost / 1e9] * 2, [low, high], color=colour, linewidth=1.2, zorder=2)
    operations = [cost for cost, *_ in costs.values()]
    axes.set_xscale("log" if max(operations) > 10 * min(operations) else "linear")  # few ticks stand in half a decade
    axes.set_xlabel("multiply-adds of one patch, G", fontsize=9)
    axes.set_ylabel(metric, fontsize=9)
    _plain(axes, "both")
    legend = figure.legend(loc="outside right center", frameon=False, fontsize=8, title="parameters as area")
    legend.get_title().set_fontsize(8)
    return figure


def differences_figure(comparisons: "Sequence[Comparison]", titles: Mapping[str, str], metric: str) -> Figure:
    """Mean paired difference of each row from its baseline, 95 % interval; grey: too small to be detected here.

    The comparisons are of one metric.
    """
    figure = new_figure(7.2, 0.42 * len(comparisons) + 1.35)
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
    figure = new_figure(2.5 * columns, 2.2 * rows + 0.7)
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
    figure = new_figure(5.2, 3.8)
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
    figure = new_figure(4.6 * len(metrics), 3.6)
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


def _pair_name(found: "Comparison", titles: Mapping[str, str], several_baselines: bool) -> str:
    name = titles.get(found.row, found.row)
    against = f" - {titles.get(found.baseline, found.baseline)}" if several_baselines else ""
    return f"{name}{against}  (n={found.n})"


def _plain(axes: Axes, lines: Literal["x", "y", "both"] = "x") -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8, length=0, axis="both")
    axes.grid(axis=lines, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _running_median(values: np.ndarray) -> np.ndarray:
    width = len(values) // 40 * 2 + 1  # 5 % of the curve; nothing for short ones
    if width < 3:
        return values
    padded = np.pad(values, width // 2, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
