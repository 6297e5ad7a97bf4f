"""`python src/benchmark.py networks` as a user calls it."""

import subprocess
import sys

import pytest

from covidseg.benchmark.networks import all_rows, markdown
from covidseg.config.paths import ROOT
from covidseg.system.files import read_json


def benchmark(*arguments, cwd):
    command = [sys.executable, str(ROOT / "src" / "benchmark.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_rows_come_in_the_papers_order():
    rows = all_rows()
    assert [row for table, row in rows if table == "table1"] == [
        "fcn", "unet3d", "vnet", "unetpp", "covidsegnet", "fdfcn",
    ]  # fmt: skip
    assert [row for table, row in rows if table == "table2"] == [
        "unet4", "cab", "ceb", "psb", "fv", "aspp", "resaspp", "paspp", "full", "fv_ungated",
    ]  # fmt: skip


def test_networks_prints_every_row_and_writes_its_numbers(tmp_path):
    done = benchmark("networks", "networks.size_zyx=[32,32,64]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = read_json(tmp_path / "runs" / "benchmark" / "networks.json")
    assert [(row["table"], row["row"]) for row in written["rows"]] == all_rows()
    text = (tmp_path / "runs" / "benchmark" / "networks.md").read_text()
    assert text in done.stdout and markdown(written["rows"]) in text
    by_row = {(row["table"], row["row"]): row for row in written["rows"]}
    assert by_row["table1", "covidsegnet"]["parameters"] == by_row["table2", "full"]["parameters"] == 34_157_509
    assert by_row["table2", "fv"]["parameters"] == by_row["table2", "fv_ungated"]["parameters"]
    assert "19,069,955" in by_row["table1", "unet3d"]["published_parameters"]
    own = [row for row in written["rows"] if row["table"] != "table3" or row["model"] == "covidsegnet"]
    assert all(0 < row["bytes_for_backward_recomputing"] < row["bytes_for_backward"] for row in own)
    others = [row for row in written["rows"] if row not in own]
    assert others and {row["bytes_for_backward_recomputing"] for row in others} == {None}, (
        "MONAI's keep to their options"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize(
    "arguments, message",
    [(["network"], "suite=network: there is no such suite -> did you mean networks?"), ([], "suite: has no value")],
)
def test_a_wrong_suite_is_one_line(arguments, message, tmp_path):
    done = benchmark(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
