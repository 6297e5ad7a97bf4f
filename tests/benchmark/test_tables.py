"""No table of a document is stale: what `make tables` would write is what is there."""

import pytest

from covidseg.benchmark.tables import filled, generated
from covidseg.config.paths import ROOT
from covidseg.evaluation.metrics import METRICS


@pytest.fixture(scope="module")
def tables():
    return generated()


def without_torch_version(text):
    return [line for line in text.splitlines() if not line.startswith('  "torch":')]


def test_every_table_is_as_make_tables_writes_it(tables):
    assert {path.name for path in tables} == {
        "networks.json",
        "networks.md",
        "README.md",
        "reference.md",
        "reproduce-public.md",
    }
    stale = [
        path.name
        for path, text in tables.items()
        if without_torch_version(text) != without_torch_version(path.read_text(encoding="utf-8"))
    ]
    assert stale == [], "run: make tables"


def test_the_tables_hold_what_they_are_about(tables):
    readme, reference = (tables[ROOT / name] for name in ("README.md", "docs/reference.md"))
    assert "| table2 | full | covidsegnet | fv | paspp | 34,157,509 |" in readme
    assert all(f"| {metric.heading} (" in reference for metric in METRICS)
    assert "| not empty | empty | 0 | 0 | undefined | 0 | undefined | 0 | by its definition | missed |" in reference


def test_only_what_stands_between_the_marks_is_replaced():
    text = "a\n<!-- table: one -->\nold\n<!-- end of table -->\nb\n"
    once = filled(text, {"one": lambda: "new"})
    assert once == "a\n<!-- table: one -->\n\nnew\n\n<!-- end of table -->\nb\n"
    assert filled(once, {"one": lambda: "new"}) == once
    with pytest.raises(KeyError):
        filled(text, {})
