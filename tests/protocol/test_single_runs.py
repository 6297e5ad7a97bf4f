"""A run that could not be scored is refused, each remedy works, and training on everything is a choice said aloud."""

import json
import re

import pytest

from covidseg.data.prepare import run as preparation
from covidseg.report import collect
from covidseg.runs.folder import RunFolder
from covidseg.system.files import read_json


def run_folder(tmp_path, fold="", task="lesion"):
    return RunFolder(tmp_path / "runs" / "t" / "r" / task / f"seed0{fold}")


def train(command, *arguments):
    return command("train", "name=t", "row=r", *arguments)


@pytest.fixture
def public(ct_seg):
    return ["data=covid19_ct_seg", f"data.root={ct_seg}"]


def test_no_test_set_is_refused_before_a_scan_is_read_and_the_named_fold_works(command, public, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "build", None)
        status, _, err = train(command, *public)
    assert status == 2
    assert err == (
        "error: covid19_ct_seg: has no test set, so a run could not be scored -> "
        "cross-validate with fold=0 ... fold=4, or train on everything with fold=all\n"
    )
    assert not run_folder(tmp_path).has_results
    status, _, err = train(command, *public, re.search(r"fold=\d", err)[0])
    assert status == 0, err
    folder = run_folder(tmp_path, "-fold0")
    assert folder.is_finished and read_json(folder.path / "metrics.json")["sets"]["test"]["lesion"]["n"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "build", None)
        status, _, err = train(command, *public, "fold=7")
    assert status == 2 and err.startswith("error: fold=7: covid19_ct_seg has 5 folds, counted from 0 -> ")


@pytest.mark.parametrize(("file", "trained"), [("covid19_ct_seg_16train.json", 16), ("covid19_ct_seg_4train.json", 4)])
def test_a_published_fold_is_trained_whole_or_less_what_it_chooses_by(command, public, tmp_path, file, trained):
    public = [*public, f"data.splits.published={file}", "fold=0"]
    status, _, err = train(command, *public)
    assert status == 0, err
    status, _, err = command("train", "name=t", "row=best", *public, "training.evaluate=best")
    assert status == 0, err
    last, best = (read_json(tmp_path / f"runs/t/{row}/lesion/seed0-fold0/manifest.json") for row in ("r", "best"))
    tested = 20 - trained
    leaking = trained - last["cases"]["train"]
    assert 0 <= leaking <= 2 and last["cases"]["validation"] == 0 and last["cases"]["test"] == tested
    assert best["cases"]["test"] == tested and best["cases"]["validation"] >= (2 if trained == 16 else 1)
    assert best["cases"]["train"] + best["cases"]["validation"] == last["cases"]["train"]
    scored = [read_json(tmp_path / f"runs/t/{row}/lesion/seed0-fold0/metrics.json")["sets"] for row in ("r", "best")]
    assert [list(sets) for sets in scored] == [["test"], ["test"]]


def test_the_strong_recipe_works_on_a_fold_as_getting_started_says(command, public, tmp_path):
    strong = [option for option in public if option] + ["recipe=strong", "fold=0", "training.foreground_probability=0"]
    status, _, err = train(command, *strong, "augment=none", "optimizer.schedule.warmup=0.1", "model.width=2")
    assert status == 0, err
    assert (run_folder(tmp_path, "-fold0").checkpoints / "best.ckpt").exists()


def test_training_on_everything_is_said_and_done_and_scored_nowhere(command, public, tmp_path):
    status, out, err = train(command, *public, "fold=all")
    assert status == 0, err
    said = next(line for line in out.splitlines() if "fold=all:" in line)
    assert "trained on all 20 annotated of 20 cases" in said and "no case is left to be scored on" in said
    folder = run_folder(tmp_path, "-foldall")
    metrics = read_json(folder.path / "metrics.json")
    assert metrics["sets"] == {} and "no score was asked for" in metrics["not_scored"]
    assert folder.is_finished and not folder.is_unscored
    manifest = read_json(folder.path / "manifest.json")
    assert manifest["cases"] == {"train": 20, "validation": 0, "test": 0, "external": 0}
    status, out, _ = train(command, *public, "fold=all")
    assert status == 0 and "nothing to do" in out
    assert "done" in command("status")[1] and "trained, not scored" in command("status")[1]
    status, _, err = command("report", "table=t")
    assert status == 2 and "trained on every case" in err and "-> " in err
    run = f"run={folder.path}"
    status, _, err = command("evaluate", run)
    assert status == 2
    status, out, err = command("evaluate", run, re.search(r"sets=\S+", err)[0])
    assert status == 0 and "20 cases" in out, err


def test_everything_includes_the_test_cases_of_data_that_have_some(command, write_folder, tmp_path):
    data = write_folder("abcde", csv="case,site,split\na,A,test\nb,B,\n")
    data = [*data, "data.splits.external_sites=[B]", "data.splits.folds=0"]
    status, out, err = train(command, *data, "fold=all")
    assert status == 0, err
    assert "all 5 annotated of 5 cases" in out and "1 validation, 1 test, 1 external cases" in out


def test_choosing_on_everything_is_refused_and_the_remedy_works(command, public):
    status, _, err = train(command, *public, "fold=all", "training.evaluate=best")
    assert status == 2 and "fold=all keeps no case to choose by" in err
    assert train(command, *public, "fold=all", err.split(" -> ")[1].strip())[0] == 0


def test_without_folds_the_remedy_names_what_makes_a_score(command, write_folder, tmp_path):
    data = write_folder("abc")
    data = [*data, "data.splits.test_fraction=0"]  # five folds are too many
    status, _, err = train(command, *data)
    assert status == 2 and "has no test set" in err
    fraction, folds, fold, everything = re.findall(r"data\.splits\.\w+=[\d.]+|fold=\w+", err)
    for number, remedy in enumerate(([fraction], [folds, fold], [everything])):
        status, _, err = command("train", "name=t", f"row=r{number}", *data, *remedy)
        assert status == 0, err


def test_prepare_says_that_there_are_folds_and_no_test_set(command, public):
    status, out, _ = command("prepare", *public, "check_only=true", "data.spacing_zyx=[9,9,9]")
    assert status == 0 and out.strip().endswith("no test set, 5 folds for cross-validation")


def test_one_patient_can_only_be_trained_on(command, write_folder, tmp_path):
    data = write_folder("ab", csv="case,patient\na,p\nb,p\n")
    status, _, err = train(command, *data, "data.splits.test_fraction=0")
    assert status == 2 and "folds" not in err
    assert train(command, *data, "data.splits.test_fraction=0", "fold=all")[0] == 0


def test_declared_validation_cases_are_what_is_scored(command, write_folder, tmp_path):
    csv = "case,split\na,train\nb,train\nc,validation\nd,train\n"
    data = write_folder("abcd", csv=csv)
    status, _, err = train(command, *data)
    assert status == 0, err
    assert list(read_json(run_folder(tmp_path).path / "metrics.json")["sets"]) == ["validation"]
    assert run_folder(tmp_path).is_finished


def test_a_test_set_without_a_mask_of_the_structure_does_not_count(command, write_folder, tmp_path):
    names = [f"c{k}" for k in range(6)]
    data = write_folder(names, lungs=names[:4], csv="case,split\nc4,test\nc5,test\n")
    data = [*data, "data.splits.folds=2"]
    status, _, err = train(command, *data, "task=lung")
    assert status == 2 and "has no lung annotated in its test set" in err
    assert train(command, *data, "task=lung", "fold=all")[0] == 0
    assert train(command, *data, "task=lesion")[0] == 0


def test_a_drawn_test_set_without_a_mask_of_the_structure_is_refused_before_training(command, write_folder, tmp_path):
    names = [f"c{k}" for k in range(8)]
    data = [*write_folder(names, lungs=names[:3]), "data.splits.folds=4"]
    status, _, err = train(command, *data, "task=lung")  # who is drawn is known once the lesions are
    assert status == 2 and "has no lung annotated in its test set" in err
    assert not list(run_folder(tmp_path, task="lung").checkpoints.glob("*"))
    assert train(command, *data, "task=lung", re.search(r"fold=\w+", err)[0])[0] == 0


def test_choosing_without_anything_to_choose_by_names_a_remedy_that_works(command, write_folder, tmp_path):
    data = write_folder("abcdef")
    data = [*data, "data.splits.validation_fraction=0", "training.evaluate=best"]
    status, _, err = train(command, *data)
    assert status == 2 and "raise data.splits.validation_fraction" in err
    assert train(command, *data, "data.splits.validation_fraction=0.2")[0] == 0
    assert command("train", "name=t", "row=last", *data, "training.evaluate=last")[0] == 0


def test_folds_of_your_own_file_keep_something_to_choose_by(command, write_folder, tmp_path):
    """Three of four training patients have no lesion: the one that is held out is one of them."""
    folds = [{"train": list("abcd"), "test": ["e"]}, {"train": ["e"], "test": list("abcd")}]
    (tmp_path / "mine.json").write_text(json.dumps({"folds": folds}))
    data = [*write_folder("abcde", healthy="abc"), "data.may_be_empty=true", "data.splits.test_fraction=0"]
    data += ["data.splits.published=mine.json", "training.evaluate=best"]
    status, _, err = train(command, *data, "fold=0")
    assert status == 2 and "-> set it to last, or raise data.splits.validation_fraction" in err
    assert train(command, *data, "fold=0", "data.splits.validation_fraction=0.5")[0] == 0
    assert command("train", "name=t", "row=last", *data, "fold=0", "training.evaluate=last")[0] == 0
    status, _, err = train(command, *data, "fold=1")
    assert status == 2 and err.endswith("-> set it to last: one patient is left to train on\n")
    assert command("train", "name=t", "row=last", *data, "fold=1", "training.evaluate=last")[0] == 0
    (tmp_path / "mine.json").write_text(json.dumps({"folds": []}))
    status, _, err = command("train", "name=t", "row=own", *data, "fold=0")
    assert status == 2 and "lists no fold" in err
    own = [
        re.search(r"data\.splits\.published=\w+", err)[0],
        "data.splits.folds=2",
        "data.splits.validation_fraction=0",
    ]
    assert command("train", "name=t", "row=own", *data, "fold=0", *own, "training.evaluate=last")[0] == 0
    (tmp_path / "mine.json").write_text(json.dumps({"folds": [{"train": ["a"], "test": ["z"]}]}))
    status, _, err = command("train", "name=t", "row=absent", *data, "fold=0")
    assert status == 2 and "names cases that are not there: z" in err and "data.splits.published=null" in err


def test_declared_validation_cases_without_a_lesion_cannot_choose(command, write_folder, tmp_path):
    table = "case,split\na,train\nb,train\nc,validation\nd,train\n"
    data = [*write_folder("abcd", healthy="c", csv=table), "data.may_be_empty=true", "training.evaluate=best"]
    status, _, err = train(command, *data)
    assert status == 2 and "declare other validation cases in cases.csv" in err
    (tmp_path / "raw" / "cases.csv").write_text(table.replace("d,train", "d,validation"))
    assert train(command, *data)[0] == 0


def test_a_threshold_is_scored_where_networks_are(command, public, tmp_path):
    status, _, err = command("baseline", "name=t", *public)
    assert status == 2 and "has no test set" in err
    status, out, err = command("baseline", "name=t", *public, "fold=1")
    assert status == 0 and "test: " in out, err
    status, _, err = command("baseline", "name=t", *public, "fold=all")
    assert status == 2 and "a threshold is fitted to be scored" in err


def test_results_without_scores_are_unfinished(command, public, tmp_path):
    folder = run_folder(tmp_path)
    folder.path.mkdir(parents=True)
    (folder.path / "metrics.json").write_text(json.dumps({"sets": {}}))
    folder.write_status("finished", step=2, max_steps=2)
    assert folder.is_unscored and not folder.is_finished
    out = command("status")[1]
    assert "failed" in out and "nothing was scored" in out and "fold=all" in out
    (run,) = collect(tmp_path / "runs" / "t").runs
    assert run.state != "finished"
    status, _, err = train(command, *public)
    assert status == 2 and "has no test set" in err


def test_settings_are_chosen_on_validation_cases_alone(command, tmp_path):
    """`sweep=recipe`: neither the run nor its report says a word about a test patient."""
    status, out, err = train(command, "training.score_on=validation")
    assert status == 0, err
    folder = run_folder(tmp_path)
    assert list(read_json(folder.path / "metrics.json")["sets"]) == ["validation"]
    rows = (folder.path / "cases.csv").read_text().splitlines()[1:]
    manifest = read_json(folder.path / "manifest.json")
    assert len(rows) == manifest["cases"]["validation"] > 0
    assert manifest["protocol"]["sets"] == {"validation": len(rows)}
    status, out, err = command("report", "table=t")
    assert status == 0 and "lesion, validation set" in out, err
