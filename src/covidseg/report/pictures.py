"""The report's figures, from what the runs kept: scores, differences, curves, contours on held-out cases, surfaces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from covidseg.evaluation.metrics import BY_COLUMN
from covidseg.figures import overlays as figures
from covidseg.figures import plots
from covidseg.figures.palette import colours
from covidseg.report.analysis import ALL_SITES
from covidseg.report.collect import Run, TableResults
from covidseg.report.page import Picture
from covidseg.report.table import Block, method_runs, scores
from covidseg.runs.slices import FOLDER, Slice
from covidseg.system.errors import BadInput
from covidseg.system.files import csv_lines

Keep = Callable[..., None]  # (caption, figure, parts of the file's name)
_CURVES = ("train/loss", "val/loss", "val/dice")


def draw(results: TableResults, blocks: Sequence[Block], folder: Path, voxels: bool = True) -> list[Picture]:
    """Write PNG files, and the same as PDF, into `folder`; returns them in the order to show them.

    `voxels=False` leaves out what shows a scan or a mask: contours and surfaces.
    """
    drawn: list[Picture] = []
    runs = method_runs(results)
    titles = {line.method: line.title for block in blocks for line in block.lines}

    def keep(caption: str, figure: Figure, *name: str, key: str = "") -> None:
        path = folder / ("-".join(name) + ".png")
        drawn.append(Picture(caption, figures.save(figure, path), key))
        figures.save(figure, path.with_suffix(".pdf"))  # for print: lines and letters of any size

    for block in blocks:
        own = {method: [run for run in found if block.structure in run.structures] for method, found in runs.items()}
        _draw_numbers(block, own, titles, keep)
        if voxels:
            _draw_contours(block, own, titles, keep)
    if voxels:
        _draw_surface(results, runs, keep)
    for task in sorted({run.task for found in runs.values() for run in found}):
        curves = {}
        for method, members in runs.items():
            if logged := [curve for run in members if run.task == task and (curve := _curve(run))]:
                curves[titles.get(method, method)] = logged
        metrics = [name for name in _CURVES if any(name in curve for curve in chain(*curves.values()))]
        if metrics:
            keep(f"Training of the {task} task.", plots.curves_figure(curves, metrics), "curves", task)
    return drawn


def _draw_numbers(block: Block, runs: dict[str, list[Run]], titles: Mapping[str, str], keep: Keep) -> None:
    """Plots of scores, differences, volumes and probabilities."""
    name = (block.set, block.structure)
    means = {method: found for method in runs if (found := scores(runs[method], *name, "dice"))}
    if means:
        shown = {titles[method]: list(found.values()) for method, found in means.items()}
        paper = {titles[line.method]: line.paper[0] for line in block.lines if line.paper}
        figure = plots.scores_figure(shown, paper, f"{block.structure} Dice")
        keep(f"Dice of every case: {block.where}.", figure, "dice", *name, key=block.place("comparisons"))
        figure = plots.paired_figure({titles[method]: own for method, own in means.items()}, f"{block.structure} Dice")
        caption = f"Dice of every case from row to row: {block.where}."
        keep(caption, figure, "paired", *name, key=block.place("comparisons"))
    if costs := _costs(block):
        caption = f"Dice, its 95 % interval over patients, and what a network costs: {block.where}."
        keep(caption, plots.costs_figure(costs, f"{block.structure} Dice"), "costs", *name)
    for metric in dict.fromkeys(one.metric for one in block.comparisons):
        compared = [one for one in block.comparisons if one.metric == metric]
        figure = plots.differences_figure(compared, titles, f"{block.structure} {BY_COLUMN[metric].heading}")
        caption, file = (
            f"Paired differences in {BY_COLUMN[metric].heading}: {block.where}.",
            ("differences", *name, *_suffix(metric)),
        )
        keep(caption, figure, *file, key=block.place("verdict"))
    if volumes := [one for one in block.volumes if one.site == ALL_SITES]:
        figure = plots.agreement_figure(volumes, titles, block.structure)
        keep(
            f"Predicted against reference volumes: {block.where}.",
            figure,
            "volumes",
            *name,
            key=block.place("agreement"),
        )
    if block.calibrations:
        curves = {titles[one.method]: one.reliability for one in block.calibrations}
        figure = plots.calibration_figure(curves, block.structure)
        keep(f"Calibration: {block.where}.", figure, "calibration", *name, key=block.place("calibration"))


def _costs(block: Block) -> dict[str, tuple[float, float, float, float | None, float | None]]:
    """Of the lines of networks that have a Dice, where there are two or more to compare."""
    found: dict[str, tuple[float, float, float, float | None, float | None]] = {}
    for line in block.lines:
        dice = line.metrics.get("dice")
        if dice is not None and line.multiply_adds and line.parameters:
            found[line.title] = (line.multiply_adds, line.parameters, dice.mean, dice.low, dice.high)
    return found if len(found) > 1 else {}


def _draw_contours(block: Block, runs: dict[str, list[Run]], titles: Mapping[str, str], keep: Keep) -> None:
    colour = dict(zip((line.title for line in block.lines), colours(len(block.lines)), strict=True))
    for case, kept in _shared_slices(runs, block).items():
        dice = {
            titles[method]: scores(runs[method][:1], block.set, block.structure, "dice").get(case) for method in kept
        }
        figure = figures.contour_figure({titles[method]: one for method, one in kept.items()}, dice, colour)
        keep(f"Contours on {case}: {block.where}, runs of the first seed.", figure, "contours", block.structure, case)


def _suffix(metric: str) -> tuple[str, ...]:
    """Of a file's name: Dice is what a figure is about unless it says otherwise."""
    return () if metric == "dice" else (metric,)


def _shared_slices(runs: dict[str, list[Run]], block: Block) -> dict[str, dict[str, Slice]]:
    """Case -> method -> slice kept by the method's first run, for cases of the block's set, the most lesion first."""
    in_set = {case["case"] for run in chain(*runs.values()) for case in run.cases if case["set"] == block.set}
    found: dict[str, dict[str, Slice]] = {}
    for method, own in runs.items():
        for one in _kept(own[:1], block.structure):
            if one.case in in_set:
                found.setdefault(one.case, {})[method] = one
    return dict(sorted(found.items(), key=lambda item: -next(iter(item[1].values())).reference.sum()))


def _draw_surface(results: TableResults, runs: dict[str, list[Run]], keep: Keep) -> None:
    """Surfaces of the method with the best mean lesion Dice, on the case with the most lesion."""
    means = {
        method: sum(found.values()) / len(found)
        for method, own in runs.items()
        if (found := scores([run for run in own if "lesion" in run.structures], "test", "lesion", "dice"))
    }
    for best in sorted(means, key=lambda method: means[method], reverse=True):
        kept = list(_kept(runs[best]))
        lesions = [one for one in kept if one.structure == "lesion"]
        if lesions:
            lesion = max(lesions, key=lambda one: one.volumes[0].sum())
            lung = next((one for one in kept if (one.case, one.structure) == (lesion.case, "lung")), None)
            title = results.titles.get(best, best)
            figure = figures.surface_figure(lesion, lung, title)
            keep(f"Surfaces of {lesion.case}: reference and {title}.", figure, "surface")
            return


def _kept(runs: Sequence[Run], structure: str = "*") -> Iterator[Slice]:
    """The slices that runs kept; one that cannot be read costs a picture and not the report."""
    for run in runs:
        for path in sorted((run.folder / FOLDER).glob(f"*_{structure}.npz")):
            with suppress(BadInput):
                yield Slice.load(path)


def _curve(run: Run) -> dict[str, list[float]] | None:
    """metrics.csv by column, NaN where nothing was logged; None where there is none."""
    try:
        rows = csv_lines(run.folder / "metrics.csv")
        return {
            name: [float(row[name]) if row[name] else float("nan") for row in rows]
            for name in ("step", *_CURVES)
            if rows and name in rows[0]
        } or None
    except (OSError, ValueError, TypeError):
        return None
