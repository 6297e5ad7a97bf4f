import subprocess
import sys

import pytest

from covidseg.config.paths import ROOT


def run(arguments, folder):
    command = [sys.executable, str(ROOT / "src" / "report.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def finished_run(tmp_path):
    from covidseg.evaluation.results import COLUMNS
    from covidseg.system.files import write_csv, write_json

    folder = tmp_path / "runs" / "demo" / "small" / "lesion" / "seed0"
    row = dict.fromkeys(COLUMNS, "") | {"case": "p1", "patient": "p1", "set": "test", "structure": "lesion"}
    row |= {"dice": 0.5, "sensitivity": 0.5, "precision": 0.5, "nsd": 0.5, "hd95_mm": 3.0, "tp": 1, "fp": 1, "fn": 1}
    write_csv(folder / "cases.csv", [row], COLUMNS)
    write_json(folder / "metrics.json", {"sets": {}, "parameters": 10, "multiply_adds": 10})
    return folder


def test_report_command_prints_the_table_and_names_the_page(finished_run, tmp_path):
    done = run(["table=demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.500" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "experiments/demo/results/report.html"
    assert (tmp_path / "experiments" / "demo" / "results" / "report.html").exists()


def test_wrong_table_is_one_line(tmp_path):
    done = run(["table=nosuch"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: table=nosuch: there are no such runs -> tables with runs: none yet"


def test_the_table_of_an_installed_user_names_its_missing_rows(finished_run, tmp_path):
    """In a folder that holds neither a clone nor rows: the rows come with the suite, the results go where one works."""
    (tmp_path / "runs/demo").rename(tmp_path / "runs/table2")
    done = run(["table=table2", "paths.results=mine"], tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "mine/table2/results/table.md").read_text()
    assert "fv/lesion/seed0" in table and "not started" in table and not (tmp_path / "experiments").exists()


def test_rows_of_ones_own_are_expected_too(finished_run, tmp_path, monkeypatch):
    (tmp_path / "runs/demo").rename(tmp_path / "runs/table2")
    own = tmp_path / "conf/experiments/table2/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nname: table2\nrow: mine\n")
    monkeypatch.setenv("COVIDSEG_CONF", str(tmp_path / "conf"))
    done = run(["table=table2"], tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "experiments/table2/results/table.md").read_text()
    assert "mine/lesion/seed0" in table and "unet4/lesion/seed0" in table
    done = run(["table=table2", f"paths.experiments={tmp_path}/conf/experiments"], tmp_path)
    table = (tmp_path / "experiments/table2/results/table.md").read_text()
    assert "mine/lesion/seed0" in table and "unet4/lesion/seed0" not in table
    train = [sys.executable, str(ROOT / "src/train.py"), "experiments/table2=mine", "--cfg", "job"]
    composed = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert composed.returncode == 0 and "row: mine" in composed.stdout, composed.stderr
