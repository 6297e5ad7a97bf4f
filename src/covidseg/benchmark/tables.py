"""`make tables`: the tables that documents hold, written anew from what they are about.

In a document a table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; all else is left as it is.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hydra import compose, initialize_config_dir

from covidseg.benchmark import networks
from covidseg.config.paths import CONF, ROOT
from covidseg.evaluation.metrics import BY_FORMULA, METRICS, UNDEFINED, Metric
from covidseg.system.files import write_text

DOCUMENTS = ("README.md", "docs/reference.md")
_PLACE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def generated(root: Path = ROOT) -> dict[Path, str]:
    """{file: its text as it should be} of every file of the checkout `root` that holds a table."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        measured = networks.Measured.of(compose("benchmark", overrides=["suite=networks"]).networks)
    tables = {
        "networks": lambda: measured.table,
        "metrics": lambda: _markdown(("metric", "definition"), (_definition(metric) for metric in METRICS)),
        "empty-masks": _empty_masks,
    }
    files = {root / "experiments" / name: text for name, text in measured.files().items()}
    return files | {root / name: filled((root / name).read_text(encoding="utf-8"), tables) for name in DOCUMENTS}


def filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """`text` with each table in its place. Raises `KeyError` for a place of a table that is not known."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{tables[place['name']]()}\n\n{place[3]}", text)


def _definition(metric: Metric) -> tuple[str, str]:
    better = "higher" if metric.higher_is_better else "lower"
    return f"{metric.heading} ({better} is better)", metric.definition.replace("|", "\\|")


def _empty_masks() -> str:
    header = ("reference", "prediction", *(metric.title for metric in METRICS), "counted as")
    cases = (
        ("empty", "empty", "both_empty", "empty reference"),
        ("empty", "not empty", "false_alarm", "empty reference, false alarm"),
        ("not empty", "empty", "missed", "missed"),
    )
    rows = [
        (reference, prediction, *(_policy(getattr(metric, policy)) for metric in METRICS), counted)
        for reference, prediction, policy, counted in cases
    ]
    return _markdown(header, rows)


def _policy(value: float | str | None) -> str:
    if value is UNDEFINED:
        return "undefined"
    return "by its definition" if value == BY_FORMULA else f"{value:g}"


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write every table that is stale, and say which."""
    for path, text in generated().items():
        if path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
