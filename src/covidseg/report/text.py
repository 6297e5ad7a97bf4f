"""Markdown and CSV of a report. Names come from users: each format escapes what it would read as syntax."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from covidseg.evaluation.metrics import METRICS
from covidseg.report.section import Section
from covidseg.report.table import Block, Line

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")

_PARTS = ("n", "mean", "sd", "median", "low", "high")  # of a metric's summary
CSV_COLUMNS = (
    *("method", "title", "set", "structure", "state", "runs", "expected_runs", "seeds", "n", "scored"),
    *("empty_references", "missed", "false_alarms", "parameters", "multiply_adds", "hours", "law", "paper_law"),
    *("paper_dice", "paper_sensitivity", "paper_precision"),
    *(f"{metric.column}_{part}" for metric in METRICS for part in (*_PARTS, "failed", "seeds_sd")),
)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole report as Markdown."""
    parts = [f"# {_md(title)}"]
    for section in sections:
        parts.append(f"## {_md(section.title)}")
        if section.rows:
            parts.append(
                "\n".join([_md_row(section.header), "|" + "---|" * len(section.header), *map(_md_row, section.rows)])
            )
        if section.code:
            parts.append(f"```\n{section.code}\n```")
        parts += map(_md, section.notes)
    return "\n\n".join(parts) + "\n"


def csv_rows(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """One flat line for each method, set and structure, full precision, under `CSV_COLUMNS`."""
    rows = []
    for line in (line for block in blocks for line in block.lines):
        values = {name: value for name, value in asdict(line).items() if name in CSV_COLUMNS}
        values["seeds"] = " ".join(map(str, line.seeds))
        values["state"] = _state(line)
        values |= dict(zip(("paper_dice", "paper_sensitivity", "paper_precision"), line.paper or (), strict=False))
        for metric, summary in line.metrics.items():
            for part in _PARTS:
                values[f"{metric}_{part}"] = getattr(summary, part)
            values[f"{metric}_failed"] = line.failed[metric]
            values[f"{metric}_seeds_sd"] = line.seed_sds.get(metric)
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
