import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from covidseg.evaluation.calibration import BINS, MARGIN_MM, Reliability
from covidseg.system.errors import BadInput

SPACING = (5.0, 5.0, 5.0)


def drawn(seed=0, shape=(12, 14, 16), power=1.0):
    """Probabilities, and a structure that is there with probability ** power: 1 is perfectly calibrated."""
    draw = np.random.default_rng(seed)
    probability = draw.uniform(size=shape).astype(np.float32)
    return probability, draw.uniform(size=shape) < probability**power


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_error_is_torchmetrics(power):
    probability, reference = drawn(power=power)
    theirs = binary_calibration_error(
        torch.from_numpy(probability.ravel()), torch.from_numpy(reference.ravel().astype(int)), n_bins=BINS, norm="l1"
    )
    assert Reliability.of(probability, reference, SPACING).error == pytest.approx(theirs.item(), abs=1e-4)


def test_a_calibrated_network_has_a_small_error_and_an_overconfident_one_a_large_one():
    calibrated, overconfident = (Reliability.of(*drawn(shape=(30, 40, 40), power=power), SPACING) for power in (1, 4))
    assert calibrated.error < 0.01 < 0.2 < overconfident.error
    predicted, found = calibrated.curve()
    assert np.abs(predicted - found).max() < 0.05
    predicted, found = overconfident.curve()
    assert (found[3:-1] < predicted[3:-1]).all()


def test_only_voxels_near_the_structure_count():
    probability, reference = np.zeros((40, 40, 40)), np.zeros((40, 40, 40), bool)
    reference[20, 20, 20] = True
    probability[20, 20, 22] = 0.9
    margin = int(MARGIN_MM / 5)
    kept = Reliability.of(probability, reference, SPACING)
    assert sum(kept.voxels) == (1 + 2 * margin) ** 2 * (3 + 2 * margin)
    assert sum(kept.present) == 1
    assert Reliability.of(np.zeros((5, 5, 5)), np.zeros((5, 5, 5), bool), SPACING) is None


def test_probabilities_of_one_are_in_the_last_bin():
    kept = Reliability.of(np.ones((3, 3, 3)), np.ones((3, 3, 3), bool), SPACING)
    assert kept.voxels == (0,) * (BINS - 1) + (27,) and kept.error == 0


def test_several_cases_are_one_by_their_voxels(tmp_path):
    parts = [Reliability.of(*drawn(seed, power=2), SPACING) for seed in range(3)]
    together = Reliability.together(parts)
    assert sum(together.voxels) == 3 * 12 * 14 * 16
    assert together.error == pytest.approx(np.mean([part.error for part in parts]), abs=0.01)
    assert Reliability.together([]) is None


def test_it_comes_back_from_a_run_as_it_went(tmp_path):
    kept = Reliability.of(*drawn(), SPACING)
    kept.save(tmp_path, "p01", "lesion")
    assert Reliability.load(tmp_path / "calibration" / "p01_lesion.json") == kept


@pytest.mark.parametrize(
    "change",
    [
        {"voxels": [1] * (BINS - 1)},
        {"voxels": [0] * BINS, "present": [0] * BINS, "probability": [0] * BINS},
        {"present": [10**9] * BINS},
        {"present": [-1] * BINS},
        {"probability": [1e9] * BINS},
        {"voxels": "many"},
        {"voxels": [1.5] * BINS},
    ],
)
def test_what_no_run_wrote_is_refused(tmp_path, change):
    Reliability.of(*drawn(), SPACING).save(tmp_path, "p01", "lesion")
    path = tmp_path / "calibration" / "p01_lesion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=r"p01_lesion\.json: is no calibration"):
        Reliability.load(path)
    path.write_text("{")
    with pytest.raises(BadInput, match=r"p01_lesion\.json"):
        Reliability.load(path)
