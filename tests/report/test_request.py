"""Other comparisons than the table's own, asked for on the command line."""

import os
import subprocess
import sys

import pytest

from covidseg import report
from covidseg.report.request import PARTS, Request, every_pair
from covidseg.report.table import blocks
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json

DEFAULTS = {
    "part": "table",
    "baseline": None,
    "pairs": None,
    "metrics": ["dice"],
    "results": "results",
    "pictures": True,
    "cases": "all",
}


def asked(**options):
    return Request.of(DEFAULTS | options)


@pytest.fixture
def command(tmp_path):
    """`command("agreement", "table=demo")` in a terminal of 80 columns -> (exit status, stdout, stderr)"""

    def run(*arguments):
        line = [sys.executable, "-m", "covidseg.cli.report", *arguments]
        environment = os.environ | {"COLUMNS": "80"}
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def three_rows(write_run, tmp_path):
    for error, row in enumerate(("unet4", "fv", "full")):
        for seed in (0, 1):
            write_run("table2", row, seed=seed, error=error, slices=True)
    return report.collect(tmp_path / "runs" / "table2")


def test_without_a_wish_every_row_is_compared_with_the_tables_baseline(three_rows):
    (block,) = blocks(three_rows)
    assert [(one.row, one.baseline, one.metric) for one in block.comparisons] == [
        ("fv", "unet4", "dice"),
        ("full", "unet4", "dice"),
    ]
    assert len(block.all_pairs) == 3


def test_pairs_metrics_and_baseline_are_what_was_asked_for(three_rows):
    (block,) = blocks(three_rows, asked(pairs=[["full", "fv"], ["fv", "unet4"]], metrics=["dice", "hd95"]))
    assert [(one.row, one.baseline, one.metric) for one in block.comparisons] == [
        ("full", "fv", "dice"),
        ("fv", "unet4", "dice"),
        ("full", "fv", "hd95_mm"),
        ("fv", "unet4", "hd95_mm"),
    ]
    assert {one.family for one in block.comparisons} == {4}
    (block,) = blocks(three_rows, asked(baseline="full", metrics="nsd"))
    assert [(one.row, one.baseline, one.metric) for one in block.comparisons] == [
        ("unet4", "full", "nsd"),
        ("fv", "full", "nsd"),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pairs": [["full", "unet"]]}, "unet is no row of the table -> did you mean unet4?"),
        ({"baseline": "nothing"}, "baseline=nothing: nothing is no row of the table -> rows of this table: unet4, fv"),
        ({"pairs": ["full", "fv"]}, r"pairs=\[full, fv\]: is no list of pairs"),
        ({"pairs": [["fv", "fv"]]}, "fv cannot be compared with itself"),
        ({"pairs": []}, "is no list of pairs"),
        ({"metrics": ["dise"]}, "metrics=dise: is no metric -> did you mean dice?"),
        ({"metrics": []}, "compares nothing"),
        ({"results": "../elsewhere"}, "is no name of a folder"),
        ({"results": "a/b"}, "is no name of a folder"),
        ({"results": ""}, "is no name of a folder"),
        ({"cases": "chose"}, "cases=chose: is no choice of cases -> did you mean chosen?"),
        ({"pictures": "no"}, "pictures=no: is neither true nor false"),
        ({"part": "ranks"}, "there is no such part -> did you mean ranking?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(three_rows, tmp_path, options, says):
    with pytest.raises(BadInput, match=says):
        report.write(three_rows, tmp_path / "out", asked(**options))
    assert not (tmp_path / "out").exists()


def test_without_pictures_nothing_shows_a_voxel(three_rows, tmp_path):
    report.write(three_rows, tmp_path / "with")
    report.write(three_rows, tmp_path / "without", asked(pictures=False))
    names = {kind: {file.name for file in (tmp_path / kind / "figures").iterdir()} for kind in ("with", "without")}
    assert {"surface.png", "contours-lesion-tp01.png"} <= names["with"]
    assert names["without"] == {name for name in names["with"] if not name.startswith(("surface", "contours"))}
    page = (tmp_path / "without" / "report.html").read_text()
    assert 2 * page.count("<img") == len(names["without"]) > 0  # a PNG and a PDF of each
    assert "Contours" not in page


def test_the_command_takes_a_part_a_folder_and_a_list(three_rows, command, tmp_path):
    shown = {}
    for part in PARTS:
        status, out, err = command(part, "table=table2", "results=mine", "pictures=false")
        assert status == 0, err
        shown[part] = out
        assert max(map(len, out.splitlines())) <= 80
    assert "ICC" in shown["agreement"] and "Kendall" in shown["ranking"] and "what is" in shown["worst"]
    assert len(set(shown.values())) == len(PARTS)
    assert not (tmp_path / "experiments/table2/results").exists()
    pairs = "pairs=[[full,fv]]"
    status, out, err = command("table=table2", pairs, "metrics=[dice,nsd]", "results=mine")
    assert status == 0, err
    found = read_json(tmp_path / "experiments/table2/mine/statistics.json")["sets"][0]["comparisons"]
    assert [(one["row"], one["baseline"], one["metric"]) for one in found] == [
        ("full", "fv", "dice"),
        ("full", "fv", "nsd"),
    ]
    status, out, err = command("table=table2", "pairs=[[full,nothing]]")
    assert status == 2 and "nothing is no row of the table" in err


def test_every_pair_is_each_two_once():
    assert every_pair(["a", "b", "c"]) == [("b", "a"), ("c", "a"), ("c", "b")]
