import numpy as np
import pytest
from scipy import stats

from covidseg.evaluation.agreement import icc, volume_agreement

# Six targets and four judges: Shrout & Fleiss, Psychological Bulletin 1979, 86:420, table 2.
RATINGS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_icc_of_the_published_example():
    assert icc(np.array(RATINGS, float)) == pytest.approx(0.29, abs=0.005)  # their ICC(2,1)


def test_icc_at_its_ends():
    values = np.arange(10.0)
    assert icc(np.stack([values, values], axis=1)) == 1
    assert icc(np.stack([values, values + 100], axis=1)) < 0.01  # the same order is no agreement
    assert icc(np.ones((5, 2))) is None
    assert icc(np.ones((1, 2))) is None


def test_bland_and_altman_by_hand():
    reference = np.array([100.0, 200.0, 300.0, 400.0])
    found = volume_agreement([110.0, 190.0, 330.0, 410.0], reference)
    assert (found.n, found.bias, found.error) == (4, 10.0, 15.0)
    reach = 1.96 * stats.tstd([10, -10, 30, 10])
    assert (found.low, found.high) == pytest.approx((10 - reach, 10 + reach))


def test_few_cases():
    found = volume_agreement([1.0, 4.0], [2.0, 2.0])
    assert (found.n, found.bias, found.error) == (2, 0.5, 1.5)
    assert (found.low, found.high, found.icc) == (None, None, None)
    with pytest.raises(ValueError, match="0 predicted"):
        volume_agreement([], [])
