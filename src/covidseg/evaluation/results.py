"""What scored cases come to: `cases.csv`, `metrics.json`, a terminal's table. The report reads it without torch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from covidseg.evaluation.flags import Findings, flags
from covidseg.evaluation.metrics import COUNTS, METRICS, VOLUMES, summarise
from covidseg.system.files import write_csv, write_json

COLUMNS = (
    *("case", "patient", "site", "set", "structure"),
    *(metric.column for metric in METRICS),
    *(*COUNTS, *VOLUMES, "undefined"),
)


def summarise_sets(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{set: {structure: `metrics.summarise`}} of rows of `cases.csv`."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        named = {metric.name: row[metric.column] for metric in METRICS}
        groups.setdefault(row["set"], {}).setdefault(row["structure"], []).append({**row, **named})
    return {name: {part: summarise(found) for part, found in parts.items()} for name, parts in groups.items()}


def implausible(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """[{"case", "key", "text"}]: predictions that no chest holds, by their volumes (`flags`)."""
    volumes: dict[str, dict[str, float]] = {}
    for row in rows:
        volumes.setdefault(row["case"], {})[f"{row['structure']}_ml"] = row["prediction_ml"]
    return [{"case": case, **flag} for case, figures in volumes.items() for flag in flags(Findings(figures))]


def write_results(folder: Path | str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Write `cases.csv`, then `metrics.json` (`sets` and what `extra` adds): its presence means that all is there."""
    folder = Path(folder)
    metrics = {"sets": summarise_sets(rows), **extra}
    write_csv(folder / "cases.csv", rows, COLUMNS)
    write_json(folder / "metrics.json", metrics)
    return metrics


def summary_table(sets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """What `summarise_sets` gave, for a terminal of 80 columns."""
    table = Table("set", "structure", "metric", "mean", "SD", "median", "n", caption_justify="left")
    counts = []
    for set_name, parts in sets.items():
        for structure, summary in parts.items():
            for metric in METRICS:
                found = summary[metric.name]
                cells = [metric.text(found[part]) for part in ("mean", "sd", "median")]
                first = (set_name, structure) if metric is METRICS[0] else ("", "")
                table.add_row(*first, metric.heading, *cells, str(found["n"]))
            table.add_section()
            named = ("n_missed", "missed"), ("n_false_alarm", "false alarms"), ("n_empty_reference", "empty references")
            numbers = ", ".join(f"{summary[key]} {title}" for key, title in named)
            counts.append(f"{set_name}, {structure}: {summary['n']} cases, {numbers}")
    table.caption = "\n".join(counts)
    return table
