"""Contact sheets of a prepared data set: three planes of every case with its masks, so that a wrong one is seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from covidseg.data.store import LABELS, PreparedCase, whole_ml
from covidseg.figures.overlays import INK, MUTED, save
from covidseg.figures.palette import REFERENCE_COLOUR

LUNG_COLOUR = "#4aa3ff"
PLANES = ("axial", "coronal", "sagittal")
_ACROSS, _DOWN = 3, 10  # cases on a sheet
_PANEL_INCHES = 1.55


def contact_sheets(cases: Sequence[PreparedCase], window: Sequence[float], folder: Path) -> list[Path]:
    """Write contact-1.png, ... of all cases into `folder` in the order given; those of an earlier call go.

    `window`: HU that are black and white. Each plane is the one that cuts the most lesion, or else the most lung.
    """
    for old in folder.glob("contact-*.png"):
        old.unlink()
    size = _ACROSS * _DOWN
    parts = [cases[start : start + size] for start in range(0, len(cases), size)]
    return [save(_sheet(part, window), folder / f"contact-{number}.png") for number, part in enumerate(parts, start=1)]


def planes(image: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(image, mask) of the axial, coronal and sagittal plane of arrays (z, y, x) that grow to S, P, L; rows top down.

    As radiologists look at them: the patient's right, or front, is on the left, the head is up.
    """
    shown = next((mask == LABELS[name] for name in ("lesion", "lung") if (mask == LABELS[name]).any()), mask == 0)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        index = int(np.count_nonzero(shown, axis=others).argmax()) if mask.any() else shown.shape[axis] // 2
        pair = np.take(image, index, axis), np.take(mask, index, axis)
        yield pair if axis == 0 else (pair[0][::-1], pair[1][::-1])


def _sheet(cases: Sequence[PreparedCase], window: Sequence[float]) -> Figure:
    rows = -(-len(cases) // _ACROSS)
    columns = min(len(cases), _ACROSS)
    size = (columns * len(PLANES) * _PANEL_INCHES, rows * (_PANEL_INCHES + 0.3) + 0.5)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    for number, (case, part) in enumerate(
        zip(cases, figure.subfigures(rows, columns, squeeze=False).flat, strict=False)
    ):
        part.suptitle(_caption(case), fontsize=7, color=INK)
        step = case.grid.spacing_zyx
        for axis, (axes, (image, mask)) in enumerate(
            zip(part.subplots(1, len(PLANES)), planes(np.asarray(case.image), np.asarray(case.mask)), strict=True)
        ):
            down, across = (step[other] for other in range(3) if other != axis)
            _draw(axes, image, mask, window, down / across)
            if number < columns:
                axes.set_xlabel(PLANES[axis], fontsize=6, color=MUTED)
    lines = [
        Line2D([], [], color=REFERENCE_COLOUR, label="lesion"),
        Line2D([], [], color=LUNG_COLOUR, label="lung"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _caption(case: PreparedCase) -> str:
    sizes = " x ".join(map(str, case.grid.native.shape_zyx))
    steps = " x ".join(f"{mm:.3g}" for mm in case.grid.native.spacing_zyx)
    volumes = {name: whole_ml(case.info, name) for name in LABELS}
    told = ", ".join(f"{name} {ml:.0f} ml" for name, ml in volumes.items() if ml is not None)
    return f"{case.id}\n{sizes}, {steps} mm; {told}"


def _draw(axes: Axes, image: np.ndarray, mask: np.ndarray, window: Sequence[float], aspect: float) -> None:
    low, high = window
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
    for region, colour in ((mask > 0, LUNG_COLOUR), (mask == LABELS["lesion"], REFERENCE_COLOUR)):
        if region.any() and not region.all():
            axes.contour(region.astype(float), levels=[0.5], colors=[colour], linewidths=0.7)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
