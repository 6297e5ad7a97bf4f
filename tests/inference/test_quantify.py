import itertools
import json

import numpy as np
import pytest

from covidseg.inference.quantify import FIGURES, mosmed_class, quantify, split_lungs, zone_score
from covidseg.scans.geometry import Geometry

SHAPE = (12, 20, 40)  # canonical (S, P, L): a body with a right lung in columns 4-15 and a left one in 24-35
GEOMETRY = Geometry(SHAPE, (2.0, 1.0, 0.5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
VOXEL_ML = 0.001
RIGHT, LEFT = slice(4, 16), slice(24, 36)


@pytest.fixture
def scan():
    """(lung, lesion, HU): lungs of 9 slices each, no lesion yet, noise of many values."""
    rng = np.random.default_rng(0)
    lung = np.zeros(SHAPE, bool)
    lung[1:10, 5:15, RIGHT] = True
    lung[1:10, 5:15, LEFT] = True
    hu = np.where(lung, -800, 40) + rng.integers(-90, 90, SHAPE) * 2 + rng.integers(0, 2, SHAPE)
    return lung, np.zeros(SHAPE, bool), hu.astype(np.int16)


def test_volumes_shares_and_densities_by_hand(scan):
    lung, lesion, hu = scan
    lesion[1:4, 5:15, LEFT] = True  # the lower third of the left lung: 360 of 1080 voxels
    lesion[1:4, 15, LEFT] = True  # and 36 voxels of pleura behind it
    hu[lesion] = -600
    hu[1, 5:15, LEFT] = 30  # a slice of it, 120 voxels, consolidated
    hu[2, 5, 24] = -300  # the threshold itself counts as consolidation
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert figures["lung_ml"] == pytest.approx(2160 * VOXEL_ML)
    assert figures["left_lung_ml"] == figures["right_lung_ml"] == pytest.approx(1080 * VOXEL_ML)
    assert figures["lesion_ml"] == pytest.approx(396 * VOXEL_ML)
    assert figures["lesion_outside_lung_ml"] == pytest.approx(36 * VOXEL_ML)
    assert figures["infection_share"] == pytest.approx(360 / 2196, abs=1e-4)
    assert figures["left_infection_share"] == pytest.approx(360 / 1116, abs=1e-4)
    assert figures["right_infection_share"] == 0
    assert figures["consolidation_ml"] == pytest.approx(121 * VOXEL_ML)
    assert figures["ground_glass_ml"] == pytest.approx(275 * VOXEL_ML)
    assert figures["consolidation_share"] == pytest.approx(121 / 396, abs=1e-4)
    assert figures["zone_left_lower"] == 4
    assert figures["zone_score"] == 4
    assert figures["mosmed_class"] == "CT-1"
    assert figures["left_right_method"] == "connected components"
    assert figures["undefined"] == {}
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(("zone", "slab"), [("upper", slice(7, 10)), ("middle", slice(4, 7)), ("lower", slice(1, 4))])
@pytest.mark.parametrize(("side", "columns"), [("right", RIGHT), ("left", LEFT)])
def test_each_zone_is_where_it_should_be(scan, zone, slab, side, columns):
    lung, lesion, hu = scan
    lesion[slab, 5:11, columns] = True  # 6 of its 10 rows
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert {name: figures[name] for name in FIGURES if name.startswith("zone_") and figures[name]} == {
        f"zone_{side}_{zone}": 3,
        "zone_score": 3,
    }


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("flips", itertools.product([1, -1], repeat=3))
def test_left_stays_left_in_all_48_orientations(scan, order, flips):
    lung, lesion, hu = scan
    lesion[7:10, 5:15, RIGHT] = True
    expected = quantify(lung, lesion, hu, GEOMETRY, -300)
    turned = [
        np.ascontiguousarray(array.transpose(order)[tuple(slice(None, None, f) for f in flips)]) for array in scan
    ]
    direction = np.zeros((3, 3))
    for array_axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        direction[2 - source, 2 - array_axis] = flip
    spacing = tuple(GEOMETRY.spacing_zyx[axis] for axis in order)
    geometry = Geometry(turned[0].shape, spacing, (0, 0, 0), tuple(direction.ravel()))
    assert quantify(*turned, geometry, -300) == expected


def test_touching_lungs_are_cut_at_the_least_lung(scan):
    lung, lesion, hu = scan
    lung[8, 5:7, 16:24] = True  # an anterior bridge; its narrowest part is nowhere, so the midline's nearest column
    lung[8, 5, 16:21] = lung[8, 5, 22:24] = True
    lung[8, 5, 21] = False
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert figures["left_right_method"] == "sagittal plane of least lung near the midline"
    assert figures["right_lung_ml"] == pytest.approx((1080 + 10) * VOXEL_ML)
    assert figures["left_lung_ml"] == pytest.approx((1080 + 5) * VOXEL_ML)


def test_one_lung_in_the_middle_of_a_crop_is_not_cut_in_two(scan):
    """A scan cropped around one lung: its own half is no second lung."""
    lung, lesion, hu = scan
    lung[:], lesion[:] = False, False
    lung[1:10, 5:15, 12:28] = lesion[1:4, 5:15, 12:28] = True
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert figures["infection_share"] == pytest.approx(1 / 3, abs=1e-4)
    sided = [name for name in FIGURES if name.startswith(("left", "right", "zone"))]
    assert all(figures[name] is None for name in sided)
    assert {figures["undefined"][name] for name in sided} == {"left and right cannot be told apart"}


def test_a_lung_that_is_not_there_is_said(scan):
    """One lung collapsed or unseen: its side has no share, and no zone score is made of three zones."""
    lung, lesion, hu = scan
    lung[..., LEFT] = False
    lesion[2:4, 5:15, RIGHT] = True
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert figures["left_lung_ml"] == 0
    assert figures["right_infection_share"] > 0
    assert figures["left_infection_share"] is None and figures["zone_score"] is None
    assert figures["undefined"]["zone_score"] == "no left lung found"


def test_eight_bit_scans_get_no_density(scan):
    """A scan stored as 0 to 255 of a window has steps of 6 HU and no more than 256 values."""
    lung, lesion, hu = scan
    lesion[2, 5, 5] = True
    hu = ((hu // 6) * 6).astype(np.int16)
    figures = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert figures["ground_glass_ml"] is None and figures["consolidation_share"] is None
    assert "8-bit" in figures["undefined"]["consolidation_ml"]
    assert figures["infection_share"] > 0


@pytest.mark.parametrize(
    ("with_lung", "with_lesion", "defined", "reason"),
    [
        (True, False, {"lung_ml", "left_lung_ml", "right_lung_ml"}, "no lesion mask"),
        (False, True, {"lesion_ml", "ground_glass_ml", "consolidation_ml", "consolidation_share"}, "no lung mask"),
    ],
)
def test_one_mask_alone_gives_what_it_can(scan, with_lung, with_lesion, defined, reason):
    lung, lesion, hu = scan
    lesion[2:4, 5:15, RIGHT] = True
    figures = quantify(lung if with_lung else None, lesion if with_lesion else None, hu, GEOMETRY, -300)
    assert {name for name in FIGURES if figures[name] is not None} == defined
    assert set(figures["undefined"]) == set(FIGURES) - defined
    assert set(figures["undefined"].values()) == {reason}


def test_empty_masks_stay_finite(scan):
    lung, lesion, hu = scan
    healthy = quantify(lung, lesion, hu, GEOMETRY, -300)
    assert (healthy["infection_share"], healthy["zone_score"], healthy["mosmed_class"]) == (0, 0, "CT-0")
    assert healthy["undefined"] == {"consolidation_share": "no lesion found"}
    nothing = quantify(lesion, lesion, hu, GEOMETRY, -300)
    assert nothing["lung_ml"] == 0 and nothing["infection_share"] is None
    assert nothing["undefined"]["infection_share"] == "no lung found"


def test_small_pieces_go_to_their_side():
    lung = np.zeros((4, 4, 20), bool)
    lung[:, :, 2:7] = lung[:, :, 12:18] = True
    lung[0, 0, 8] = lung[0, 0, 10] = False
    lung[0, 0, 19] = lung[0, 0, 0] = True
    left, method = split_lungs(lung, 10)
    assert method == "connected components"
    np.testing.assert_array_equal(left, lung & (np.arange(20) >= 10))


@pytest.mark.parametrize(
    ("share", "score", "mosmed"),
    [
        (0, 0, "CT-0"),
        (1e-6, 1, "CT-1"),
        (0.2499, 1, "CT-1"),
        (0.25, 2, "CT-2"),
        (0.5, 3, "CT-3"),
        (0.7499, 3, "CT-3"),
        (0.75, 4, "CT-3"),
        (0.7501, 4, "CT-4"),
        (1, 4, "CT-4"),
    ],
)
def test_class_limits(share, score, mosmed):
    assert (zone_score(share), mosmed_class(share)) == (score, mosmed)


def test_masks_off_the_grid_are_refused(scan):
    with pytest.raises(ValueError, match="lesion of shape"):
        quantify(scan[0], scan[1][:1], scan[2], GEOMETRY, -300)
