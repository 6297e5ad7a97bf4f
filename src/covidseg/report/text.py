"""Markdown, LaTeX and CSV of a report. Names come from users: each format escapes what it would read as syntax."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from covidseg.evaluation.metrics import METRICS
from covidseg.report.sections import Section
from covidseg.report.table import Block, Line

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$^\dagger$", "–": "--",
    "<": r"$<$", ">": r"$>$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")

CSV_COLUMNS = (
    *("method", "title", "set", "structure", "state", "runs", "expected_runs", "seeds", "n", "scored"),
    *("empty_references", "missed", "false_alarms", "parameters", "multiply_adds", "seeds_sd", "law", "paper_law"),
    *("paper_dice", "paper_sensitivity", "paper_precision"),
    *(f"{metric.column}_{part}" for metric in METRICS for part in ("n", "mean", "sd", "median", "low", "high")),
)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole report as Markdown."""
    parts = [f"# {_md(title)}"]
    for section in sections:
        table = [_md_row(section.header), "|" + "---|" * len(section.header), *map(_md_row, section.rows)]
        parts += [f"## {_md(section.title)}", "\n".join(table), *map(_md, section.notes)]
    return "\n\n".join(parts) + "\n"


def latex(sections: Sequence[Section]) -> str:
    """The given sections as `table` environments; needs the booktabs package."""
    parts = []
    for section in sections:
        columns = "l" + "r" * (len(section.header) - 1)
        body = "\n".join(_tex_row(row) for row in section.rows)
        notes = " ".join(map(_tex, section.notes))
        parts.append(
            "\\begin{table}\n\\centering\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{_tex_row(section.header)}\n\\midrule\n{body}\n\\bottomrule\n"
            f"\\end{{tabular}}\n\\caption{{{_tex(section.title)}. {notes}}}\n\\end{{table}}\n"
        )
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def csv_rows(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """One flat line for each method, set and structure, full precision, under `CSV_COLUMNS`."""
    rows = []
    for line in (line for block in blocks for line in block.lines):
        values = {name: value for name, value in asdict(line).items() if name in CSV_COLUMNS}
        values["seeds"] = " ".join(map(str, line.seeds))
        values["state"] = _state(line)
        values |= dict(zip(("paper_dice", "paper_sensitivity", "paper_precision"), line.paper or (), strict=False))
        for metric, summary in line.metrics.items():
            for part in ("n", "mean", "sd", "median", "low", "high"):
                values[f"{metric}_{part}"] = getattr(summary, part)
        rows.append(values)
    return rows


def _state(line: Line) -> str:
    if line.runs == line.expected_runs:
        return "finished"
    return "partial" if line.runs else "missing"


def _md(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"
