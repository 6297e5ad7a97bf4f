"""The table says what its numbers were measured on, and leaves out what asked for none."""

from io import StringIO

import pytest
from rich.console import Console

from covidseg import report
from covidseg.report.table import blocks
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_csv, write_json

CV = {"folds": 2, "published": None, "held_out": True, "evaluate": "last"}
FIXED = {"folds": 5, "published": None, "held_out": False, "evaluate": "last"}


def told(tmp_path, table="demo"):
    return {(one.set, one.structure): one.protocol for one in blocks(report.collect(tmp_path / "runs" / table))}


def test_a_whole_cross_validation_and_the_file_its_folds_are_from(write_run, tmp_path):
    for row in ("a", "b"):
        for fold in (0, 1):
            facts = {**CV, "published": "covid19_ct_seg_16train.json"}
            write_run("demo", row, fold=fold, prefix=f"f{fold}", protocol={**facts, "fold": fold})
    wanted = "2-fold cross-validation, published folds covid19_ct_seg_16train.json"
    assert told(tmp_path) == {("test", "lesion"): wanted}
    screen = StringIO()
    folder = report.make_report("demo", tmp_path / "runs", tmp_path / "e", console=Console(file=screen, width=200))
    shown = wanted.replace("_", "\\_")
    assert f"Protocol: {shown}." in (folder / "table.md").read_text()
    for text in ((folder / "report.html").read_text(), screen.getvalue()):
        assert f"Protocol: {wanted}." in " ".join(text.split())  # a terminal breaks lines
    assert read_json(folder / "statistics.json")["sets"][0]["protocol"] == wanted


def test_a_part_of_a_cross_validation_is_said(write_run, tmp_path):
    for fold in (0, 1):
        write_run("demo", "a", fold=fold, prefix=f"f{fold}", protocol={**CV, "folds": 5})
    assert told(tmp_path)["test", "lesion"] == "a part of a cross-validation, folds 0, 1 of 5"
    write_run("demo", "b", fold=0, prefix="f0", protocol={**CV, "folds": 5})
    assert told(tmp_path)["test", "lesion"].endswith("folds 0, 1 of 5; some rows lack folds, see column runs")


def test_fixed_sets_are_counted_in_patients(write_run, tmp_path):
    write_run("demo", "a", cases=6, sets=("test", "external"), protocol=FIXED)
    assert told(tmp_path) == {
        ("test", "lesion"): "fixed test set of 6 patients",
        ("external", "lesion"): "external set of 6 patients",
    }


def test_folds_over_a_fixed_test_set_are_no_cross_validation(write_run, tmp_path):
    for fold in (0, 1):
        write_run("demo", "a", fold=fold, cases=4, sets=("test", "external"), protocol=FIXED)
    assert told(tmp_path) == {
        ("test", "lesion"): "fixed test set of 4 patients, scored by the networks of folds 0, 1 of 5",
        ("external", "lesion"): "external set of 4 patients, scored by the networks of folds 0, 1 of 5",
    }


@pytest.mark.parametrize(("evaluate", "more"), [("last", ""), ("best", ", by which checkpoints were chosen, too")])
def test_a_validation_set_is_called_one(write_run, tmp_path, evaluate, more):
    write_run("demo", "a", sets=("validation",), cases=3, protocol={**FIXED, "evaluate": evaluate})
    assert told(tmp_path)["validation", "lesion"] == f"declared validation set of 3 patients{more}"


def test_runs_that_do_not_say_are_described_by_what_they_scored(write_run, tmp_path):
    for fold in (0, 1):
        write_run("old", "a", fold=fold, prefix=f"f{fold}")
        write_run("same", "a", fold=fold)
    write_run("one", "a")
    write_run("validated", "a", sets=("validation",))
    assert told(tmp_path, "old")["test", "lesion"] == (
        "a part of a cross-validation, folds 0, 1 (of how many is not recorded)"
    )
    assert told(tmp_path, "same")["test", "lesion"].startswith("fixed test set of 6 patients, scored by")
    assert told(tmp_path, "one")["test", "lesion"] == "fixed test set of 6 patients"
    assert told(tmp_path, "validated")["validation", "lesion"] == "validation set of 6 patients"


def test_what_asked_for_no_score_is_left_out_by_name(write_run, tmp_path):
    write_run("demo", "a")
    folder = write_run("demo", "a", fold="all", sets=())
    results = report.collect(tmp_path / "runs" / "demo")
    assert [run.name for run in results.runs] == ["a/lesion/seed0"]
    assert [run.name for run in results.not_scored] == ["a/lesion/seed0-foldall"]
    report.write(results, tmp_path / "out")
    assert "1 trained on every case (fold=all), not scored" in (tmp_path / "out" / "table.md").read_text()
    assert read_json(tmp_path / "out" / "statistics.json")["not_scored"] == ["a/lesion/seed0-foldall"]
    write_run("other", folder.parent.parent.name, fold="all", sets=())
    with pytest.raises(BadInput, match=r"table=other: all 1 runs there are were trained on every case \(fold=all\)"):
        report.collect(tmp_path / "runs" / "other")


def test_results_without_a_score_are_unfinished_and_say_what_to_do(write_run, tmp_path):
    write_run("demo", "a")
    folder = write_run("demo", "b", sets=())
    write_json(folder / "metrics.json", {"sets": {}})
    write_csv(folder / "cases.csv", [], report.COLUMNS)
    (unfinished,) = report.collect(tmp_path / "runs" / "demo").unfinished
    assert unfinished.state == "failed" and "fold=all" in unfinished.reason and "fold=0" in unfinished.reason


def test_rows_of_different_batches_or_precisions_are_named(write_run, tmp_path):
    for row, batch, precision in (("a", 2, "32-true"), ("b", 12, "32-true"), ("c", 12, "32-true")):
        write_run("demo", row, cases=6, protocol=FIXED)
        path = tmp_path / f"runs/demo/{row}/lesion/seed0/manifest.json"
        attempt = {"effective_batch_size": batch, "precision": precision}
        write_json(path, {**read_json(path), "attempts": [attempt]})
    assert told(tmp_path)["test", "lesion"] == (
        "fixed test set of 6 patients; rows differ in effective batch or precision: "
        "batch 2, 32-true (a), batch 12, 32-true (b c)"
    )
