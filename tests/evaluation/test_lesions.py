"""Lesion-wise F1 against lesions counted by hand, and against SimpleITK's connected components."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from covidseg.evaluation.lesions import SHARE, Runs, lesion_f1


def row(*spans, length=60):
    """Lesions in one line of voxels: (start, stop) each."""
    mask = np.zeros((3, 3, length), bool)
    for start, stop in spans:
        mask[1, 1, start:stop] = True
    return mask


THREE = row((0, 10), (20, 30), (40, 50))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (THREE, 1.0),
        (row((0, 10)), 2 * (1 / 3) / (1 / 3 + 1)),  # one of three found, all that is predicted is right
        (row((0, 10), (20, 30), (40, 50), (54, 56)), 2 * (3 / 4) / (3 / 4 + 1)),  # and one that is not there
        (row((52, 58)), 0.0),  # neither found nor right
        (row((0, 4), (6, 10), (20, 30), (40, 50)), 1.0),  # one is split: found once, both parts right
        (row((0, 50)), 1.0),  # all three merged: 30 of 50 voxels right, each found
        (row((9, 19)), 2 * (1 / 3) / (1 / 3 + 1)),  # a tenth of it, a tenth of the reference's
        (row((9, 20)), 0.0),  # a tenth of the reference's lesion, but less of the predicted one: not right
    ],
)
def test_by_hand(prediction, expected):
    assert lesion_f1(prediction, THREE) == pytest.approx(expected)


def test_the_whole_volume_predicted_is_one_wrong_lesion():
    assert lesion_f1(np.ones_like(THREE), THREE) == 0.0


def test_lesions_that_touch_over_a_corner_are_one():
    reference = np.zeros((4, 4, 4), bool)
    reference[0, 0, 0] = reference[1, 1, 1] = True
    prediction = np.zeros_like(reference)
    prediction[0, 0, 0] = True
    assert lesion_f1(prediction, reference) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_equals_simpleitks_components(seed):
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random((2, 12, 14, 16)) < 0.06

    def share(mask, other):
        components = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
        labels = sitk.GetArrayFromImage(components)
        met = [np.mean(other[labels == label]) >= SHARE for label in range(1, labels.max() + 1)]
        return np.mean(met)

    found, right = share(reference, prediction), share(prediction, reference)
    assert 0 < found < 1
    assert lesion_f1(prediction, reference) == pytest.approx(2 * found * right / (found + right))


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(7, 9, 11), (1, 12, 5), (12, 1, 5), (6, 8, 1), (1, 1, 30)])
def test_parts_of_runs_are_scipys_parts_of_voxels(density, shape):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask, other = rng.random(shape) < density, rng.random(shape) < 0.5
        mask[0, 0, 0] = True
        labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
        runs = Runs.of(mask)
        assert np.array_equal(labels.reshape(-1, shape[2])[runs.row, runs.start] > 0, np.ones(len(runs.row)))
        found, part = runs.connected()
        assert found == number
        scipys = labels.reshape(-1, shape[2])[runs.row, runs.start]
        assert len({*zip(part.tolist(), scipys.tolist(), strict=True)}) == number  # one to one
        sizes = np.bincount(part, runs.stop - runs.start)
        covered = np.bincount(part, runs.count(other))
        order = [int(scipys[np.flatnonzero(part == one)[0]]) for one in range(found)]
        assert sizes.tolist() == [np.count_nonzero(labels == label) for label in order]
        assert covered.tolist() == [np.count_nonzero(other & (labels == label)) for label in order]
