import csv
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir

from covidseg.config.paths import CONF
from covidseg.evaluation.cases import case_scores, evaluate_cases
from covidseg.evaluation.metrics import case_metrics
from covidseg.evaluation.results import COLUMNS, summarise_sets, write_results
from covidseg.evaluation.structures import Task
from covidseg.system.errors import BadInput, CovidSegError

SPACING = (5.0, 0.7, 0.9)


def shipped_task(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Task.from_config(compose(overrides=[f"+task={name}"]).task)


class FakeCase:
    """What evaluation needs of a prepared case, with a random reference."""

    def __init__(self, number, annotated=("lung", "lesion"), lesion=True):
        self.id, self.patient, self.site, self.annotated = f"case{number}", f"p{number // 2}", "A", annotated
        self.grid = SimpleNamespace(native=SimpleNamespace(spacing_zyx=SPACING))
        self.labels = np.random.default_rng(number).integers(0, 3 if lesion else 2, (4, 6, 5)).astype(np.uint8)

    def reference(self):
        return self.labels


def shifted(case):
    """A stand-in for a network of the joint task: the reference, one row off."""
    return np.roll(case.labels, 1, axis=1)


def test_shipped_tasks_are_what_they_say():
    lesion, lung, joint = (shipped_task(name) for name in ("lesion", "lung", "joint"))
    labels = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert lesion.target(labels).tolist() == [0, 0, 1]
    assert lung.target(labels).tolist() == [0, 1, 1]
    assert joint.target(labels).tolist() == [0, 1, 2]
    assert lesion.target(labels).dtype == torch.int64
    assert (lesion.out_channels, lung.out_channels, joint.out_channels) == (2, 2, 3)
    assert joint.structures["lung"].tolerance_mm == lung.structures["lung"].tolerance_mm == 1.0
    assert joint.structures["lesion"].tolerance_mm == lesion.structures["lesion"].tolerance_mm == 3.0
    for task in (lesion, lung, joint):  # a network that learns its target perfectly scores 1
        classes = task.target(labels).numpy()
        for structure in task.structures.values():
            np.testing.assert_array_equal(structure.in_prediction(classes), structure.in_reference(labels.numpy()))


def test_joint_lung_is_lung_or_lesion():
    case = FakeCase(0)
    scores = case_scores(shifted(case), case.labels, SPACING, shipped_task("joint"), case.annotated)
    expected = case_metrics(shifted(case) > 0, case.labels > 0, SPACING, 1.0)
    assert scores["lung"] == expected
    assert scores["lesion"] == case_metrics(shifted(case) == 2, case.labels == 2, SPACING, 3.0)


def test_only_annotated_structures_are_scored():
    """A lesion-only case says nothing about lungs: its unmarked lung must not count as background."""
    sets = {"test": [FakeCase(0), FakeCase(1, annotated=("lung",)), FakeCase(2, annotated=("lesion",))]}
    rows = evaluate_cases(shifted, sets, shipped_task("joint"))
    assert [(row["case"], row["structure"]) for row in rows] == [
        ("case0", "lesion"),
        ("case0", "lung"),
        ("case1", "lung"),
        ("case2", "lesion"),
    ]
    assert [row["case"] for row in evaluate_cases(lambda case: shifted(case) == 2, sets, shipped_task("lesion"))] == [
        "case0",
        "case2",
    ]


class SlowToScore(FakeCase):
    """Its reference comes only once the next case is being segmented; without overlap it never would."""

    def __init__(self, number, go):
        super().__init__(number)
        self.go = go

    def reference(self):
        assert self.go.wait(20), "nothing was segmented while this case was scored"
        return self.labels


def test_a_case_is_scored_while_the_next_one_is_segmented():
    started = [threading.Event() for _ in range(5)]
    cases = [SlowToScore(number, started[number + 1]) for number in range(4)]
    most, told = [], []

    def segment(case):
        started[cases.index(case)].set()
        most.append(cases.index(case) - len(told))
        started[-1].set()
        return shifted(case)

    rows = evaluate_cases(segment, {"test": cases}, shipped_task("lesion"), told.append)
    assert [row["case"] for row in rows] == told == ["case0", "case1", "case2", "case3"]
    assert max(most) <= 3  # that many class maps at most: the one in hand, and what waits
    alone = [evaluate_cases(shifted, {"test": [FakeCase(number)]}, shipped_task("lesion"))[0] for number in range(4)]
    assert rows == alone


def test_no_more_class_maps_wait_than_are_scored_at_a_time():
    class Slow(FakeCase):
        def reference(self):
            time.sleep(0.1)
            return self.labels

    told, most = [], []

    def segment(case):
        most.append(int(case.id.removeprefix("case")) - len(told))
        return shifted(case)

    evaluate_cases(segment, {"test": [Slow(number) for number in range(9)]}, shipped_task("lesion"), told.append)
    assert max(most) == 2


def test_a_case_that_cannot_be_scored_ends_the_evaluation_with_its_reason():
    class Broken(FakeCase):
        def reference(self):
            raise BadInput(self.id, "is damaged")

    with pytest.raises(BadInput, match="case1: is damaged"):
        evaluate_cases(shifted, {"test": [FakeCase(0), Broken(1), FakeCase(2)]}, shipped_task("lesion"))


def test_files_hold_every_case_and_every_set(tmp_path):
    sets = {"test": [FakeCase(0), FakeCase(1, lesion=False)], "external": [FakeCase(0)]}
    sets["external"][0].id = "=cmd"
    rows = evaluate_cases(shifted, sets, shipped_task("joint"))
    metrics = write_results(tmp_path, rows, {"parameters": 7})
    with open(tmp_path / "cases.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == 6
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["parameters"] == 7
    healthy = next(row for row in table if (row["case"], row["structure"]) == ("case1", "lesion"))
    assert healthy["dice"] == "" and "dice: both masks empty" in healthy["undefined"]
    assert any(row["case"] == "'=cmd" for row in table), "a spreadsheet would run it"
    lesion = metrics["sets"]["test"]["lesion"]
    assert (lesion["n"], lesion["n_empty_reference"], lesion["dice"]["n"]) == (2, 1, 1)
    assert lesion["hd95"]["mean"] == pytest.approx(float(table[0]["hd95_mm"]))
    assert metrics["sets"] == summarise_sets(rows)


def test_a_failing_case_is_an_error_not_a_smaller_mean(tmp_path):
    def segment(case):
        if case.id == "case1":
            raise BadInput("case1", "is broken")
        return shifted(case)

    with pytest.raises(BadInput, match="case1: is broken"):
        evaluate_cases(segment, {"test": [FakeCase(0), FakeCase(1)]}, shipped_task("joint"))


def test_the_same_case_twice_is_noticed():
    with pytest.raises(RuntimeError, match="each once"):
        evaluate_cases(shifted, {"test": [FakeCase(0), FakeCase(0)]}, shipped_task("joint"))


def test_progress_names_each_case():
    seen = []
    evaluate_cases(shifted, {"test": [FakeCase(0), FakeCase(1)]}, shipped_task("joint"), seen.append)
    assert seen == ["case0", "case1"]


def _rank(rank, ranks, folder, failing):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    segmented = []

    def segment(case):
        segmented.append(case.id)
        if case.id == failing:
            raise BadInput(case.id, "is broken")
        return shifted(case)

    try:
        rows = evaluate_cases(segment, {"test": [FakeCase(n) for n in range(5)]}, shipped_task("joint"))
        outcome = {"rows": rows, "segmented": segmented}
    except CovidSegError as error:
        outcome = {"error": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_every_case_once_on_any_number_of_processes(tmp_path, ranks):
    """S1-20, F5: five cases on two or six processes give the rows of one process, on every rank."""
    torch.multiprocessing.spawn(_rank, (ranks, tmp_path, None), nprocs=ranks)
    expected = evaluate_cases(shifted, {"test": [FakeCase(n) for n in range(5)]}, shipped_task("joint"))
    outcomes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert all(outcome["rows"] == json.loads(json.dumps(expected)) for outcome in outcomes)
    assert sorted(case for outcome in outcomes for case in outcome["segmented"]) == [f"case{n}" for n in range(5)]


@pytest.mark.slow
def test_a_failure_on_one_rank_reaches_all(tmp_path):
    torch.multiprocessing.spawn(_rank, (2, tmp_path, "case3"), nprocs=2)
    errors = [json.loads((tmp_path / f"{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors == ["evaluation: failed on another process: case3: is broken", "case3: is broken"]
