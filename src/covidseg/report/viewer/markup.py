"""The viewer's part of a page: a plot whose dots are cases, the controls, the scans as data, the script that draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from covidseg.figures.overlays import WINDOWS
from covidseg.figures.palette import REFERENCE_COLOUR, colours
from covidseg.report.viewer.volume import REFERENCE, script_data
from covidseg.scans.segments import COLOURS

_ROW, _LEFT, _WIDTH, _TOP = 22, 190, 760, 8  # of the plot, in units of its own
_COMPARED = "Red: the reference; the method's colour: its prediction. An arrow points at the largest error of a slice. "
_TITLE = 28  # letters of a method's name that stand beside it


@dataclass(frozen=True)
class Dots:
    """A plot of one structure on one set: method -> case -> Dice; `links`: case -> where it is shown."""

    heading: str
    set: str
    structure: str
    scores: Mapping[str, Mapping[str, float]]
    links: Mapping[str, str]


@cache
def script() -> str:
    """The viewer's own code."""
    return files("covidseg.report.viewer").joinpath("viewer.js").read_text(encoding="utf-8")


@cache
def style() -> str:
    return files("covidseg.report.viewer").joinpath("viewer.css").read_text(encoding="utf-8")


def viewer(methods: Mapping[str, str], cases: Sequence[Mapping[str, Any]], title: str, plots: str = "") -> str:
    """The section of a page. `methods`: name -> title, in the order to show them; `cases` as `volume.packed` gives.

    `plots`: what `dots` made, above the scans.
    """
    own = colours(len(methods))
    config = {
        "methods": [
            {"name": name, "title": told, "colour": own[at]} for at, (name, told) in enumerate(methods.items())
        ],
        "windows": {name: list(setting) for name, setting in WINDOWS.items()},
        "reference": REFERENCE_COLOUR,
        "structures": {name: list(colour) for name, colour in COLOURS.items()},
    }
    options = "".join(f'<option value="{at}">{escape(case["label"])}</option>' for at, case in enumerate(cases))
    windows = "".join(f"<option>{escape(name)}</option>" for name in WINDOWS)
    data = "".join(map(_data, cases))
    return (
        f'<section class="viewer" id="viewer"><h2>{escape(title)}</h2>\n{plots}'
        '<noscript><p class="note">The scans below turn and scroll by a script, which is switched off here. '
        "The figures further down show the same without it.</p></noscript>\n"
        '<div class="controls" hidden>'
        f'<label>case <select id="v-case">{options}</select></label>'
        '<label>structure <select id="v-structure"></select></label>'
        f'<label>window <select id="v-window">{windows}</select></label>'
        '<label class="wide">slice <input id="v-slice" type="range" min="0" max="0" value="0">'
        '<output id="v-where"></output></label></div>\n'
        '<div class="panels"></div>\n'
        '<div class="controls" hidden><label>surface of <select id="v-method"></select></label>'
        '<label class="wide">turn <input id="v-turn" type="range" min="-180" max="180" value="0"></label></div>\n'
        '<div class="surfaces"></div>\n'
        f'<p class="note" hidden id="v-note">{_COMPARED if _has_reference(cases) else ""}R and L are the patient\'s '
        "sides. The wheel over a scan, or the slice bar, scrolls; a surface turns by dragging.</p>\n"
        f'<script type="application/json" id="v-config">{script_data(config)}</script>\n{data}'
        "</section>\n"
    )


def _has_reference(cases: Sequence[Mapping[str, Any]]) -> bool:
    return any(REFERENCE in named for case in cases for named in case["masks"].values())


def _data(case: Mapping[str, Any]) -> str:
    named = f'data-case="{escape(case["case"])}" data-set="{escape(case["set"])}"'
    return f'<script type="application/json" class="case" {named}>{script_data(case)}</script>\n'


def dots(plot: Dots, titles: Mapping[str, str]) -> str:
    """An SVG strip plot, readable without a script; with one, a dot opens its case."""
    methods = [method for method in titles if plot.scores.get(method)]
    height = _TOP + _ROW * len(methods) + 34
    base = _TOP + _ROW * len(methods)
    told = f"Dice of every case: {plot.heading}"
    parts = [f'<svg class="dots" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" role="img" aria-label="{escape(told)}">']
    for tick in range(0, 11, 2):
        x = _across(tick / 10)
        parts.append(f'<path class="rule" d="M{x} {_TOP}V{base}"/><text x="{x}" y="{base + 14}">{tick / 10:g}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{base + 30}">Dice</text>')
    for row, method in enumerate(methods):
        y = _TOP + _ROW * (row + 0.5)
        title = titles[method]
        short = title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"
        parts.append(f'<text class="name" x="{_LEFT - 12}" y="{y + 4}">{escape(short)}</text>')
        parts += [_dot(case, dice, y, plot, title) for case, dice in plot.scores[method].items()]
    return f"<figure>{''.join(parts)}</svg><figcaption>{escape(told)}.</figcaption></figure>\n"


def _dot(case: str, dice: float, y: float, plot: Dots, title: str) -> str:
    tip = escape(f"{case}: {dice:.3f}, {title}")
    data = f'data-case="{escape(case)}" data-set="{escape(plot.set)}" data-structure="{escape(plot.structure)}"'
    link = plot.links.get(case, "")
    data += f' data-page="{escape(link)}"' if link else ""
    return f'<circle cx="{_across(dice)}" cy="{y}" r="4.5" {data}><title>{tip}</title></circle>'


def _across(dice: float) -> float:
    return round(_LEFT + _WIDTH * dice, 1)
