"""Scores as a torchmetrics `Metric`: the rows of one process on any number of them, bit for bit."""

import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score
from torchmetrics.segmentation import DiceScore

from covidseg.data.train.datamodule import CaseSet
from covidseg.evaluation.cases import case_scores, evaluate_cases
from covidseg.evaluation.metrics import METRICS, case_metrics
from covidseg.evaluation.results import summarise_sets
from covidseg.evaluation.scores import CaseScores
from covidseg.evaluation.structures import Structure, Task
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.signals import StopRequest
from covidseg.training.parts import build_task

SPACING = (5.0, 0.7, 0.9)
JOINT = Task("joint", 3, (0, 1, 2), {"lung": Structure((1, 2), (1, 2), 1.0), "lesion": Structure((2,), (2,), 3.0)})


class FakeCase:
    """A case whose reference, and what a network makes of it, are of one of four kinds: see `metrics`."""

    def __init__(self, number, annotated=("lung", "lesion")):
        self.id, self.patient, self.site, self.annotated = f"case{number}", f"p{number // 2}", "A", annotated
        self.grid = SimpleNamespace(native=SimpleNamespace(spacing_zyx=SPACING))
        rng = np.random.default_rng(number)
        self.labels = rng.integers(0, 3 if number % 3 else 2, (4, 6, 5)).astype(np.uint8)
        self.classes = np.roll(self.labels, 1, axis=1) * (number % 4 != 2)

    def reference(self):
        return self.labels


def cases(count):
    annotated = [("lung", "lesion"), ("lung",), ("lesion",), ("lung", "lesion")]
    return [FakeCase(number, annotated[number % 4]) for number in range(count)]


def segment(case):
    return case.classes


def by_hand(sets, slow=True):
    """The rows as they were made before they went through tensors."""
    rows = []
    for name, members in sets.items():
        for case in members:
            scores = case_scores(case.classes, case.labels, SPACING, JOINT, case.annotated, slow)
            for structure, found in sorted(scores.items()):
                reasons = "; ".join(f"{metric}: {reason}" for metric, reason in found["undefined"].items())
                identity = {"case": case.id, "patient": case.patient, "site": case.site, "set": name}
                values = {metric.column: found[metric.name] for metric in METRICS}
                counts = {key: found[key] for key in ("tp", "fp", "fn", "reference_ml", "prediction_ml")}
                row = {**identity, "structure": structure, **values, **counts}
                rows.append({**row, "undefined": reasons})
    return rows


@pytest.mark.parametrize("slow", [True, False])
def test_rows_are_those_of_the_metrics_bit_for_bit(slow):
    """Numbers, kinds of numbers, what is undefined and why, and the order of rows and columns."""
    sets = {"test": cases(12), "external": cases(3)}
    rows = evaluate_cases(segment, sets, JOINT, slow=slow)
    assert json.dumps(rows) == json.dumps(by_hand(sets, slow))
    reasons = {reason.split(": ")[1] for row in rows for reason in filter(None, row["undefined"].split("; "))}
    assert reasons == {"both masks empty", "empty prediction"} | (set() if slow else {"not computed"})


def test_it_is_a_metric_that_begins_anew():
    scores = CaseScores()
    assert isinstance(scores, Metric) and not scores.state_dict()
    first, second = ({"test": cases(count)} for count in (5, 3))
    for sets in (first, second, first):
        assert json.dumps(evaluate_cases(segment, sets, JOINT, scores=scores)) == json.dumps(by_hand(sets))
    scores.reset()
    with pytest.raises(RuntimeError, match="each once"):
        scores.collect()


def test_validation_scores_are_a_metric_of_the_lightning_module(train_config, monkeypatch):
    """Begun anew in each validation, on the module's device, and no part of a checkpoint."""
    task = build_task(train_config(), StopRequest())
    assert task.validation_scores in list(task.modules()) and not any("scores" in name for name in task.state_dict())
    logged = []
    monkeypatch.setattr(task, "log_dict", lambda scores, **options: logged.append(scores))
    monkeypatch.setattr(task, "segment", segment)
    members = [FakeCase(number, ("lesion",)) for number in range(5)]
    for case in members:
        case.image, case.mask, case.grid.labels = None, case.labels, lambda classes: classes
    for shown in (members, members[1:3], members):
        task.validation_step(CaseSet(shown), 0)
        rows = evaluate_cases(segment, {"validation": shown}, task.task, slow=False)
        dice = [row["dice"] for row in rows if row["dice"] is not None]
        assert logged[-1]["val/dice"] == logged[-1]["val/lesion/dice"] == np.mean(dice)
    assert logged[0] == logged[2] != logged[1]


def test_each_case_counts_once():
    identity = {"set": "test", "case": "a", "structure": "lung"}
    scores = CaseScores()
    scores.expect([identity])
    found = case_metrics(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), SPACING, 1.0)
    scores.update("test", "a", "lung", found)
    assert scores.compute() == [{**identity, **{key: found[key] for key in found if key != "tn"}}]
    scores.update("test", "a", "lung", found)
    with pytest.raises(RuntimeError, match="each once"):
        scores.compute()
    with pytest.raises(KeyError):
        scores.update("test", "b", "lung", found)
    with pytest.raises(RuntimeError, match="each once"):
        scores.expect([identity, identity])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_of_low_precision_leaves_the_scores_alone(dtype):
    module = torch.nn.Module()
    module.scores = CaseScores()
    sets = {"test": cases(4)}
    evaluate_cases(segment, sets, JOINT, scores=module.scores)
    module.to(dtype)
    assert json.dumps(evaluate_cases(segment, sets, JOINT, scores=module.scores)) == json.dumps(by_hand(sets))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 5), (3, 17, 2)])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("number", [1, 5])
def test_dice_is_torchmetrics_own(shape, share, number):
    """Per case its F1 of the foreground, and over the cases its mean Dice, which leaves out both masks empty, too."""
    task = Task("lesion", 2, (0, 0, 1), {"lesion": Structure((1,), (2,), 3.0)})
    rng = np.random.default_rng((*shape, int(100 * share), number))
    members, dice = [], DiceScore(num_classes=2, include_background=False, average="macro", input_format="index")
    for k in range(number):
        case = FakeCase(k, ("lesion",))
        case.labels = (rng.random(shape) < share).astype(np.uint8) * 2
        case.classes = (rng.random(shape) < share).astype(np.uint8)
        members.append(case)
        dice.update(*(torch.from_numpy(mask[None].astype(np.int64)) for mask in (case.classes, case.labels // 2)))
    rows = evaluate_cases(segment, {"validation": members}, task, slow=False)
    for case, row in zip(members, rows, strict=True):
        f1 = BinaryF1Score()(torch.from_numpy(case.classes), torch.from_numpy(case.labels // 2))
        empty = not case.classes.any() and not case.labels.any()
        assert row["dice"] is None if empty else row["dice"] == pytest.approx(float(f1), abs=1e-6)
    mean = summarise_sets(rows)["validation"]["lesion"]["dice"]["mean"]
    expected = float(dice.compute())
    assert np.isnan(expected) if mean is None else mean == pytest.approx(expected, abs=1e-6)


def _rank(rank, ranks, folder):
    """Several evaluations in a row, the way a validation follows on another, and a fault in between."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    scores, outcomes = CaseScores(), []

    def failing(case):
        if case.id == "case1":
            raise BadInput(case.id, "is broken")
        return segment(case)

    for count, way in ((7, segment), (1, segment), (4, failing), (0, segment), (7, segment)):
        try:
            outcomes.append(evaluate_cases(way, {"test": cases(count)}, JOINT, scores=scores))
        except CovidSegError as error:
            outcomes.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [3, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (1, 2, 6))])
def test_the_rows_of_one_process_on_any_number_of_them(tmp_path, ranks):
    """S1-20, F5: uneven shares, processes without a case, and a failure of one that is raised on all."""
    torch.multiprocessing.spawn(_rank, (ranks, tmp_path), nprocs=ranks)
    expected = [json.dumps(by_hand({"test": cases(count)})) for count in (7, 1, 0, 7)]
    for rank in range(ranks):
        outcomes = json.loads((tmp_path / f"{rank}.json").read_text())
        error = outcomes.pop(2)
        assert error == ("" if rank == 1 % ranks else "evaluation: failed on another process: ") + "case1: is broken"
        assert [json.dumps(rows) for rows in outcomes] == expected
