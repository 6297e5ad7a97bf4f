"""Results that are committed: small, and of phantoms or without anything that shows a voxel."""

import csv

import pytest

from covidseg.config.paths import EXPERIMENTS
from covidseg.system.files import read_json

RESULTS = sorted(file.parent for file in EXPERIMENTS.glob("*/results*/statistics.json"))
PAGE_BYTES = 2_000_000
SHOW_VOXELS = ("contours", "surface")


def test_there_are_some():
    assert EXPERIMENTS / "table2" / "results-phantom" in RESULTS


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_committed_results(folder):
    assert (folder / "report.html").stat().st_size <= PAGE_BYTES
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "git checkout" in text and "python src/train.py" in text and "(changed)" not in text
    statistics = read_json(folder / "statistics.json")
    assert statistics["finished"] and statistics["sets"]
    figures = {file.name for file in (folder / "figures").iterdir()}
    if folder.name != "results-phantom":
        assert not any(name.startswith(SHOW_VOXELS) for name in figures)
        assert "Contours" not in (folder / "report.html").read_text(encoding="utf-8")
    rows = {name.split("/")[0] for name in statistics["finished"]}
    with open(folder / "cases.csv", newline="", encoding="utf-8") as stream:
        assert {line["row"] for line in csv.DictReader(stream)} == rows


def test_the_phantom_sweep_has_three_seeds_and_fifteen_patients():
    statistics = read_json(EXPERIMENTS / "table2" / "results-phantom" / "statistics.json")
    (test,) = [one for one in statistics["sets"] if one["set"] == "test"]
    assert len(test["lines"]) == 10
    assert all(line["seeds"] == [0, 1, 2] and line["metrics"]["dice"]["patients"] >= 15 for line in test["lines"])
    assert all(one["of"] == "methods" and one["patients"] >= 15 for one in test["comparisons"])
