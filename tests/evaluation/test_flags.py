"""Flags: each rule with a mask made for it, and none on a chest as it should be."""

import itertools

import numpy as np
import pytest

from covidseg.evaluation.flags import RULES, Findings, flags
from covidseg.inference.quantify import quantify
from covidseg.scans.geometry import Geometry

SHAPE = (12, 20, 40)  # canonical (S, P, L): a body with a right lung in columns 4-15 and a left one in 24-35
GEOMETRY = Geometry(SHAPE, (2.0, 1.0, 0.5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
RIGHT, LEFT = slice(4, 16), slice(24, 36)


class Chest:
    """A plausible scan with its masks, to be spoiled; `keys` and `texts` of the flags it raises."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.lung, self.lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
        self.lung[1:10, 5:15, RIGHT] = self.lung[1:10, 5:15, LEFT] = True
        self.lesion[1:4, 5:15, LEFT] = True
        self.hu = (np.where(self.lung, -800, 40) + rng.integers(-180, 180, SHAPE)).astype(np.int16)
        self.geometry, self.thickness_mm = GEOMETRY, 2.0

    def raised(self):
        figures = quantify(self.lung, self.lesion, self.hu, self.geometry, -300)
        findings = Findings(figures, self.lung, self.lesion, self.hu, self.geometry, self.thickness_mm)
        return {flag["key"]: flag["text"] for flag in flags(findings)}


@pytest.fixture
def chest():
    return Chest()


def test_a_plausible_chest_raises_none(chest):
    assert chest.raised() == {}
    chest.lesion[:] = False
    assert chest.raised() == {}


def voxels_of(ml):
    """A geometry whose voxels have this volume."""
    return Geometry(SHAPE, (ml ** (1 / 3) * 10,) * 3, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_a_lesion_of_35_litres_is_flagged(chest):
    """What was written without a note: more than any chest, and more than the lungs around it."""
    chest.geometry, chest.lung, chest.thickness_mm = voxels_of(35_000 / 9600), None, None
    chest.lesion[:] = True
    raised = chest.raised()
    assert raised["lesion_volume"] == "35.0 l of lesion are more than a chest holds (12 l)"
    chest.lung = np.zeros(SHAPE, bool)
    chest.lung[1:10, 5:15, RIGHT] = chest.lung[1:10, 5:15, LEFT] = True
    assert chest.raised()["lesion_beyond_lungs"] == "35000 ml of lesion are more than the lungs have (7875 ml)"


@pytest.mark.parametrize(("litres", "flagged"), [(11.9, False), (12.1, True)])
def test_lungs_larger_than_a_chest(chest, litres, flagged):
    chest.geometry, chest.thickness_mm = voxels_of(1000 * litres / 2160), None
    raised = chest.raised()
    assert ("lung_volume" in raised) is flagged
    if flagged:
        assert raised["lung_volume"] == "12.1 l of lung are more than a chest holds (12 l)"


def test_a_lesion_outside_the_lung_is_doubted(chest):
    chest.lesion[1:4, 15, LEFT] = True  # 36 voxels beside 360 inside
    assert chest.raised() == {}
    chest.lesion[4:9, 15:18, LEFT] = True  # and 180 more
    assert chest.raised()["lesion_outside_lungs"].startswith("0.2 of 0.6 ml lesion lie outside the lung mask")


@pytest.mark.parametrize(("rows", "flagged"), [(10, False), (3, False), (2, True), (0, True)])
def test_a_lung_that_is_missing_or_far_smaller(chest, rows, flagged):
    chest.lesion[:] = False
    chest.lung[:, 5 + rows : 15, LEFT] = False
    raised = chest.raised()
    assert list(raised) == (["missing_lung"] if flagged else [])
    if flagged:
        assert raised["missing_lung"] == "the left lung has 0 ml and the right one 1 ml: is it missing?"


def test_one_lung_in_the_middle_may_be_either(chest):
    chest.lung[:], chest.lesion[:] = False, False
    chest.lung[1:10, 5:15, 12:28] = True
    assert "1 ml of lung are not told apart into left and right" in chest.raised()["missing_lung"]


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, -1)])
@pytest.mark.parametrize(("end", "rows"), [("top", slice(3, 12)), ("bottom", slice(0, 9))])
def test_lungs_cut_off_at_an_end_of_the_scan(chest, order, flips, end, rows):
    """In any orientation of the file."""
    chest.lesion[:], chest.lung[:] = False, False
    chest.lung[rows, 5:15, RIGHT] = chest.lung[rows, 5:15, LEFT] = True
    direction = np.zeros((3, 3))
    for array_axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        direction[2 - source, 2 - array_axis] = flip
    for name in ("lung", "lesion", "hu"):
        turned = getattr(chest, name).transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        setattr(chest, name, np.ascontiguousarray(turned))
    spacing = tuple(GEOMETRY.spacing_zyx[axis] for axis in order)
    chest.geometry, chest.thickness_mm = Geometry(chest.hu.shape, spacing, (0, 0, 0), tuple(direction.ravel())), None
    assert chest.raised() == {
        "cut_off": f"the lungs go on beyond the scan (1.2 cm2 in its {end} slice): their volume is too small"
    }


def test_a_slab_is_cut_at_both_ends_and_a_tip_at_none(chest):
    chest.lesion[:] = False
    chest.lung[[0, 10, 11], 5:6, 4:10] = True  # the tips: 6 voxels of a section of 240
    assert chest.raised() == {}
    chest.lung[[0, 11]] = chest.lung[5]
    assert "(1.2 cm2 in its bottom slice, 1.2 cm2 in its top slice)" in chest.raised()["cut_off"]


def test_lesions_are_cut_off_where_there_is_no_lung_mask(chest):
    chest.lung = None
    chest.lesion[0] = chest.lesion[1]
    assert chest.raised()["cut_off"].startswith("the lesions go on beyond the scan (0.6 cm2 in its bottom slice)")


@pytest.mark.parametrize(
    ("thickness", "flagged"), [(None, False), (2.0, False), (1.95, False), (5.0, False), (1.25, True)]
)
def test_a_gap_between_slices(chest, thickness, flagged):
    chest.thickness_mm = thickness
    raised = chest.raised()
    expected = {"slice_gap": "slices of 1.25 mm lie 2 mm apart: what is between them was not seen"}
    assert raised == (expected if thickness == 1.25 else {})


def test_eight_bit_input(chest):
    chest.hu = ((chest.hu // 6) * 6).astype(np.int16)
    count = len(np.unique(chest.hu))
    (key, text), *others = chest.raised().items()
    assert key == "eight_bit" and not others
    assert text.startswith(f"the scan has {count} grey values, as 8-bit images do: ground glass and consolidation")


def test_a_share_without_lungs_is_said(chest):
    lung, chest.lung = chest.lung, None
    assert chest.raised() == {"no_lung_mask": "0.4 ml of lesion are no infection share: there is no lung mask"}
    chest.lung = np.zeros_like(lung)
    assert chest.raised()["no_lung"] == "the lung mask is empty (0 ml), so there is no infection share"
    chest.lung, chest.lesion = lung, None
    assert chest.raised() == {}


def test_what_is_not_known_raises_nothing():
    assert flags(Findings({})) == []
    assert [flag["key"] for flag in flags(Findings({"lesion_ml": 35_000.0}))] == ["lesion_volume"]


def test_flags_are_one_short_sentence_with_a_number(chest):
    """As many as can stand together."""
    chest.geometry, chest.thickness_mm = voxels_of(50), 1.0
    chest.lung[:, :, LEFT] = False
    chest.lesion[:] = True
    chest.hu[:] = chest.hu // 8 * 8
    raised = chest.raised()
    assert set(raised) >= set(RULES) - {"lung_volume", "no_lung", "no_lung_mask", "cut_off"}
    for text in raised.values():
        assert "\n" not in text and len(text) < 130 and any(letter.isdigit() for letter in text)
