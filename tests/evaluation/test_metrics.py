import io
import math
import statistics

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_surface_dice
from rich.console import Console
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from torchmetrics.segmentation import DiceScore

from covidseg.evaluation.metrics import METRICS, case_metrics, summarise
from covidseg.evaluation.results import COLUMNS, summarise_sets, summary_table
from covidseg.scans.geometry import union_box

SPACING = (5.0, 0.7, 0.9)


def _masks(shape=(7, 9, 8), threshold=0.6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape) > threshold, rng.random(shape) > threshold


def _block(z, y, x, shape=(6, 6, 6)):
    mask = np.zeros(shape, bool)
    mask[slice(*z), slice(*y), slice(*x)] = True
    return mask


@pytest.mark.parametrize("shape", [(1, 6, 6), (6, 1, 6), (6, 6, 1), (4, 5, 6)])
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1, 2)])
def test_flipped_views_score_as_their_copies(shape, axis):
    """Axes of length 1 among them, which numpy calls contiguous whatever their stride."""
    pair = [np.flip(mask, axis) for mask in _masks(shape, threshold=0.3)]
    assert case_metrics(*pair, SPACING, 1.0) == case_metrics(*(mask.copy() for mask in pair), SPACING, 1.0)


def test_counts_and_ratios_by_hand():
    prediction, reference = _block((0, 2), (0, 2), (0, 4)), _block((0, 2), (0, 2), (0, 2))
    scores = case_metrics(prediction, reference, (2.0, 1.0, 0.5), 1.0)
    assert (scores["tp"], scores["fp"], scores["fn"], scores["tn"]) == (8, 8, 0, 200)
    assert scores["dice"] == pytest.approx(2 / 3)
    assert scores["sensitivity"] == 1.0
    assert scores["precision"] == 0.5
    assert scores["reference_ml"] == pytest.approx(0.008)
    assert scores["prediction_ml"] == pytest.approx(0.016)
    assert scores["undefined"] == {}


def test_overlap_equals_simpleitk():
    prediction, reference = _masks()
    scores = case_metrics(prediction, reference, SPACING, 1.0)
    oracle = sitk.LabelOverlapMeasuresImageFilter()
    oracle.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, reference)))
    assert scores["dice"] == pytest.approx(oracle.GetDiceCoefficient())
    assert scores["sensitivity"] == pytest.approx(1 - oracle.GetFalseNegativeError())
    assert scores["precision"] == pytest.approx(1 - oracle.GetFalseDiscoveryRate())


def test_dice_and_its_mean_equal_torchmetrics():
    rng = np.random.default_rng(3)
    pairs = [(rng.random((2, 6, 7, 8)) < 0.4) for _ in range(4)]
    rows = [case_metrics(prediction, reference, (1, 1, 1), 1.0) for prediction, reference in pairs]
    score = DiceScore(num_classes=2, include_background=False, average="macro", input_format="index")
    for prediction, reference in pairs:
        score.update(torch.tensor(prediction[None], dtype=torch.long), torch.tensor(reference[None], dtype=torch.long))
    assert summarise(rows)["dice"]["mean"] == pytest.approx(float(score.compute()), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_hd95_equals_brute_force(seed):
    """Every border voxel against every border voxel, in mm; a voxel is border if a face neighbour is outside."""
    prediction, reference = _masks(seed=seed)
    borders = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in (prediction, reference)]
    distances = cdist(*borders)
    expected = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
    assert case_metrics(prediction, reference, SPACING, 1.0)["hd95"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("tolerance", "expected"), [(0.99, 0.0), (1.0, 0.5), (1.99, 0.5), (2.0, 1.0)])
def test_nsd_of_two_voxels_two_mm_apart(tolerance, expected):
    """Each voxel's surface is eight equal corner pieces; the four that face the other voxel lie 1 mm from its surface,
    the four behind 2 mm."""
    prediction, reference = _block((2, 3), (2, 3), (1, 2)), _block((2, 3), (2, 3), (3, 4))
    assert case_metrics(prediction, reference, (3.0, 2.0, 1.0), tolerance)["nsd"] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_cropping_changes_nothing():
    """Against MONAI on the uncropped volume, for masks inside, at the border, and in opposite corners."""
    shape = (12, 14, 16)
    inside = _block((4, 7), (5, 9), (3, 8), shape), _block((5, 8), (5, 9), (5, 9), shape)
    border = _block((0, 3), (0, 14), (0, 4), shape), _block((0, 2), (3, 14), (0, 6), shape)
    corners = _block((0, 2), (0, 2), (0, 2), shape), _block((10, 12), (12, 14), (14, 16), shape)
    for prediction, reference in (inside, border, corners):
        whole = [torch.from_numpy(np.pad(mask, 5))[None, None] for mask in (prediction, reference)]
        expected = compute_surface_dice(*whole, [1.0], include_background=True, spacing=SPACING, use_subvoxels=True)
        assert case_metrics(prediction, reference, SPACING, 1.0)["nsd"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_ragged_mask_scores_the_same_as_in_monai_and_by_hand():
    """Scattered voxels far from a small reference, as an early network draws them: the other way to distances."""
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((14, 20, 20)) < 0.4, np.zeros((14, 20, 20), bool)
    reference[2:5, 3:7, 2:6] = True
    scores = case_metrics(prediction, reference, SPACING, 2.0)
    whole = [torch.from_numpy(np.pad(mask, 3))[None, None] for mask in (prediction, reference)]
    nsd = compute_surface_dice(*whole, [2.0], include_background=True, spacing=SPACING, use_subvoxels=True)
    borders = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in (prediction, reference)]
    distances = cdist(*borders)
    assert scores["nsd"] == pytest.approx(float(nsd), rel=1e-5)
    assert scores["hd95"] == pytest.approx(max(np.percentile(distances.min(axis), 95) for axis in (0, 1)))


EMPTY, FULL, OTHER = np.zeros((6, 6, 6), bool), _block((1, 3), (1, 3), (1, 3)), _block((4, 5), (4, 5), (4, 5))
VOLUME = 8 * math.prod(SPACING) / 1000  # of FULL, ml
POLICY = {
    "both empty": (EMPTY, EMPTY, [None, None, None, None, None, None, 0.0], "both masks empty"),
    "false alarm": (FULL, EMPTY, [0.0, None, 0.0, 0.0, None, 0.0, VOLUME], "empty reference"),
    "missed": (EMPTY, FULL, [0.0, 0.0, None, 0.0, None, 0.0, VOLUME], "empty prediction"),
}


@pytest.mark.parametrize("name", POLICY)
def test_empty_masks_follow_the_written_policy(name):
    prediction, reference, expected, reason = POLICY[name]
    scores = case_metrics(prediction, reference, SPACING, 1.0)
    assert [scores[metric.name] for metric in METRICS] == expected
    assert scores["undefined"] == {
        metric.name: reason for metric, value in zip(METRICS, expected, strict=True) if value is None
    }


def test_prediction_elsewhere_is_a_miss_with_distances():
    scores = case_metrics(OTHER, FULL, (1, 1, 1), 1.0)
    assert (scores["dice"], scores["sensitivity"], scores["precision"]) == (0, 0, 0)
    assert scores["hd95"] > 3
    assert summarise([scores])["n_missed"] == 1


def test_misses_and_false_alarms_cannot_hide():
    """S1-17: however many lesions are missed, the mean falls and the counts say why; HD95 carries its own n."""
    hit = case_metrics(FULL, FULL, SPACING, 1.0)
    missed = case_metrics(EMPTY, FULL, SPACING, 1.0)
    false_alarm = case_metrics(FULL, EMPTY, SPACING, 1.0)
    healthy = case_metrics(EMPTY, EMPTY, SPACING, 1.0)
    summary = summarise([hit] * 4 + [missed] * 3 + [false_alarm] + [healthy] * 2)
    assert summary["n"] == 10
    assert (summary["n_missed"], summary["n_false_alarm"], summary["n_empty_reference"]) == (3, 1, 3)
    assert summary["dice"] == {
        "mean": 0.5,
        "sd": pytest.approx(statistics.stdev([1] * 4 + [0] * 4)),
        "median": 0.5,
        "n": 8,
    }
    assert summary["hd95"]["n"] == 4
    assert summary["sensitivity"]["n"] == 7
    assert summary["precision"]["n"] == 5


def test_summary_of_nothing_and_of_one():
    assert summarise([])["dice"] == {"mean": None, "sd": None, "median": None, "n": 0}
    assert summarise([case_metrics(FULL, FULL, SPACING, 1.0)])["dice"] == {
        "mean": 1.0,
        "sd": None,
        "median": 1.0,
        "n": 1,
    }


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "tolerance", "message"),
    [
        (FULL[:1], FULL, SPACING, 1.0, r"shape \(1, 6, 6\), reference \(6, 6, 6\)"),
        (FULL[0], FULL[0], SPACING, 1.0, r"must be \(z, y, x\)"),
        (2 * FULL.astype(np.uint8), FULL, SPACING, 1.0, "other than 0 and 1"),
        (0.5 * FULL, FULL, SPACING, 1.0, "other than 0 and 1"),
        (FULL, FULL, (1.0, 0.0, 1.0), 1.0, "positive"),
        (FULL, FULL, (1.0, 1.0), 1.0, "three positive"),
        (FULL, FULL, SPACING, math.nan, "positive"),
    ],
)
def test_bad_arguments_are_refused(prediction, reference, spacing, tolerance, message):
    """S1-18: numpy would broadcast (1, y, x) against (z, y, x) and report a Dice of 1.6."""
    with pytest.raises(ValueError, match=message):
        case_metrics(prediction, reference, spacing, tolerance)


def test_other_dtypes_score_the_same():
    expected = case_metrics(FULL, OTHER, SPACING, 1.0)
    for dtype in (np.uint8, np.int16, np.float32):
        assert case_metrics(FULL.astype(dtype), OTHER.astype(dtype), SPACING, 1.0) == expected


pairs = arrays(bool, (2, 4, 5, 6))
laws = settings(max_examples=25, deadline=None)


def _assert_close(a, b, ignore=()):
    for name in (metric.name for metric in METRICS):
        if name not in ignore:
            assert (a[name] is None) == (b[name] is None), name
            assert a[name] is None or a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name


@laws
@given(pairs)
def test_law_bounds_and_the_relation_of_dice_to_its_parts(pair):
    scores = case_metrics(*pair, SPACING, 1.0)
    for metric in METRICS:
        assert scores[metric.name] is None or 0 <= scores[metric.name] <= metric.greatest
    dice, sensitivity, precision = (scores[name] for name in ("dice", "sensitivity", "precision"))
    if sensitivity is not None and precision is not None:
        assert sensitivity + precision - 1 <= dice + 1e-9 <= (sensitivity + precision) / 2 + 2e-9


@laws
@given(pairs)
def test_law_symmetry(pair):
    forth, back = case_metrics(*pair, SPACING, 1.0), case_metrics(*pair[::-1], SPACING, 1.0)
    _assert_close(forth, back, ignore=("sensitivity", "precision"))
    assert (forth["sensitivity"], forth["precision"]) == (back["precision"], back["sensitivity"])


@laws
@given(pairs)
def test_law_identity(pair):
    if pair[0].any():
        scores = case_metrics(pair[0], pair[0], SPACING, 1.0)
        assert [scores[metric.name] for metric in METRICS] == [int(metric.higher_is_better) for metric in METRICS]


@laws
@given(pairs, st.sets(st.sampled_from([0, 1, 2]), min_size=1))
def test_law_flips(pair, axes):
    flipped = [np.flip(mask, tuple(axes)) for mask in pair]
    _assert_close(case_metrics(*pair, SPACING, 1.0), case_metrics(*flipped, SPACING, 1.0))


@laws
@given(pairs, st.integers(1, 4))
def test_law_padding(pair, width):
    padded = [np.pad(mask, width) for mask in pair]
    _assert_close(case_metrics(*pair, SPACING, 1.0), case_metrics(*padded, SPACING, 1.0))


@laws
@given(pairs, st.sampled_from([0.5, 2.0, 4.0]))
def test_law_spacing_scale(pair, factor):
    small = case_metrics(*pair, SPACING, 1.0)
    large = case_metrics(*pair, [factor * step for step in SPACING], factor)
    power = {"mm": 1, "ml": 3}
    scaled = [metric for metric in METRICS if metric.unit]
    _assert_close(small, large, ignore=[metric.name for metric in scaled])
    for metric in scaled:
        if small[metric.name] is not None:
            expected = factor ** power[metric.unit] * small[metric.name]
            assert large[metric.name] == pytest.approx(expected, rel=1e-4)


@laws
@given(arrays(bool, (4, 5, 6)), st.integers(0, 3))
def test_union_box_holds_everything_and_nothing_more(mask, margin):
    box = union_box(mask, margin=margin)
    assert mask[box].sum() == mask.sum()
    if mask.any():
        tight = np.argwhere(mask)
        assert [part.start for part in box] == [max(low - margin, 0) for low in tight.min(0)]


def test_without_slow_metrics_the_others_are_the_same_and_the_rest_says_why():
    prediction, reference = np.zeros((2, 6, 6, 6), bool)
    prediction[1:4, 1:4, 1:4] = reference[2:5, 1:4, 1:4] = True
    whole, part = (case_metrics(prediction, reference, (1, 1, 1), 1, slow=wanted) for wanted in (True, False))
    slow = {metric.name for metric in METRICS if metric.slow}
    assert slow == {"nsd", "hd95", "lesion_f1"} and all(part[name] is None for name in slow)
    assert part["undefined"] == dict.fromkeys(slow, "not computed")
    assert all(part[name] == whole[name] for name in whole.keys() - slow - {"undefined"})


def test_volume_error_has_no_sign():
    larger = _block((1, 3), (1, 3), (1, 4))
    expected = 4 * math.prod(SPACING) / 1000
    for pair in ((larger, FULL), (FULL, larger)):
        assert case_metrics(*pair, SPACING, 1.0)["volume_error"] == pytest.approx(expected)


def test_every_entry_of_metrics_is_a_column_a_summary_and_a_line_of_the_terminals_table():
    assert [name for name in COLUMNS if name in {metric.column for metric in METRICS}] == [
        metric.column for metric in METRICS
    ]
    row = {"set": "test", "structure": "lesion", "tp": 1, "fp": 0, "fn": 0}
    sets = summarise_sets([row | {metric.column: 0.5 for metric in METRICS}])
    assert all(sets["test"]["lesion"][metric.name]["mean"] == 0.5 for metric in METRICS)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(sets))
    shown = console.export_text()
    assert all(metric.heading in shown for metric in METRICS)
