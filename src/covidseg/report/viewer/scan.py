"""The page of one scan that was segmented: its masks slice by slice, its figures, what was noted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covidseg.inference.quantify import FIGURES, NOTES, NOTICE
from covidseg.report.section import Section
from covidseg.report.viewer.pages import case_page
from covidseg.report.viewer.volume import Shown, thinned, thinned_spacing
from covidseg.scans.geometry import Geometry

_NAME = "prediction"


def scan_page(
    case: str,
    voxels: np.ndarray,
    geometry: Geometry,
    masks: Mapping[str, np.ndarray],
    figures: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """HTML, whole by itself. `voxels` in HU and `masks` (bool) are (z, y, x) on `geometry`, in the scan's own order."""
    spacing = geometry.canonical().spacing_zyx
    turned = {name: thinned(geometry.to_canonical(mask), spacing) for name, mask in masks.items()}
    shown = Shown(
        case,
        "",
        case,
        thinned(geometry.to_canonical(voxels), spacing),
        thinned_spacing(spacing),
        {name: {_NAME: mask} for name, mask in turned.items()},
        lung=turned.get("lung"),
    )
    rows = [[name.replace("_", " "), _told(figures[name])] for name in FIGURES if figures.get(name) is not None]
    first = Section("Figures", ["figure", "value"], rows, [NOTICE, *notes, *NOTES])
    return case_page(shown, {_NAME: "prediction"}, [first])


def _told(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
