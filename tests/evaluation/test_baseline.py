"""The threshold baseline against trying every interval by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from covidseg.evaluation.baseline import ThresholdBaseline
from covidseg.evaluation.structures import Structure

LESION = Structure(channels=(1,), labels=(2,), tolerance_mm=3.0)


def case(seed, empty=False):
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((6, 7, 8)) < 0.3, 2, rng.integers(0, 2, (6, 7, 8))).astype(np.uint8)
    mask = np.minimum(mask, 1) if empty else mask
    image = np.where(mask == 2, rng.normal(-500, 150, mask.shape), rng.normal(-850, 200, mask.shape))
    return SimpleNamespace(image=image.round().clip(-1024, 3071).astype(np.int16), mask=mask)


def mean_dice(cases, low, high):
    scores = []
    for one in cases:
        predicted, true = (one.image >= low) & (one.image < high), one.mask == 2
        if true.any():
            scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return np.mean(scores)


def test_fit_finds_the_best_interval_of_all():
    cases = [case(0), case(1), case(2, empty=True)]
    best = ThresholdBaseline.fit(cases, LESION)
    edges = range(-1024, 513, 16)
    by_hand = max(mean_dice(cases, low, high) for low in edges for high in edges if low < high)
    assert mean_dice(cases, best.low, best.high) == pytest.approx(by_hand)
    assert by_hand > 0.5


def test_fit_needs_the_structure_somewhere():
    with pytest.raises(ValueError, match="no case has the structure"):
        ThresholdBaseline.fit([case(0, empty=True)], LESION)
