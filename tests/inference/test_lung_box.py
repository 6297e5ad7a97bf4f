"""The lungs' box holds both lungs, whatever fills them, or there is none."""

import re
import time

import numpy as np
import pytest
from scipy import ndimage

from covidseg.inference.lung_box import Doubt, lung_box
from covidseg.phantom.make import make_phantom

SHAPE = (48, 80, 80)
TISSUE = 40  # HU


@pytest.fixture(scope="module")
def chest():
    """(HU, lung or lesion, spacing) of a patient without lesions."""
    made = make_phantom(5, SHAPE, patient=4, lesions=False)
    return made.hu, made.labels > 0, made.spacing_zyx


def holds(box, lungs):
    """Whether every voxel of the lungs lies in the box."""
    inside = lungs[tuple(slice(low, high) for low, high in box)]
    return inside.sum() == lungs.sum()


def filled(hu, where):
    """The scan with soft tissue there, and in the voxels around that are partly air."""
    changed, where = hu.copy(), where | (ndimage.binary_dilation(where, iterations=2) & (hu < -200))
    changed[where] = np.random.default_rng(0).normal(TISSUE, 15, int(where.sum())).astype(hu.dtype)
    return changed


def half(lungs, side):
    """The right (0) or left (1) lung."""
    x = np.arange(lungs.shape[2]) >= lungs.shape[2] // 2
    return lungs & (x if side else ~x)


def rows(lungs, share, axis, last=True):
    """The outermost `share` of the lungs along an axis."""
    there = np.flatnonzero(lungs.any(axis=tuple(other for other in range(3) if other != axis)))
    count = round(share * len(there))
    chosen = there[-count:] if last else there[:count]
    kept = np.zeros(lungs.shape[axis], bool)
    kept[chosen] = True
    return lungs & kept.reshape([-1 if other == axis else 1 for other in range(3)])


@pytest.mark.parametrize("patient", range(6))
def test_lungs_of_any_severity_lie_in_their_box(patient):
    made = make_phantom(11, SHAPE, patient=patient)
    box = lung_box(made.hu, made.spacing_zyx)
    assert not isinstance(box, Doubt)
    assert holds(box, made.labels > 0)
    assert np.prod([high - low for low, high in box]) < 0.8 * made.hu.size


@pytest.mark.parametrize("turn", [(1, 2), (0,), (0, 1, 2)], ids=["prone", "head at the wrong end", "both"])
def test_a_patient_that_lies_another_way(chest, turn):
    hu, lungs, spacing = chest
    box = lung_box(np.flip(hu, turn), spacing)
    assert not isinstance(box, Doubt) and holds(box, np.flip(lungs, turn))


@pytest.mark.parametrize(("name", "change", "reason"), [
    ("missing right lung", lambda lungs: half(lungs, 0), "ml of air in the right half"),
    ("collapsed left lung", lambda lungs: half(lungs, 1) & ~rows(half(lungs, 1), 0.15, 0), "of air"),
    ("left lung filled from behind", lambda lungs: rows(half(lungs, 1), 0.64, 1), "ml of air on the right, "),
    ("white right lower half", lambda lungs: rows(half(lungs, 0), 0.55, 0, last=False), "one lung ends"),
    ("both lower halves white", lambda lungs: rows(lungs, 0.55, 0, last=False), "mm high in a body"),
    ("all consolidated", lambda lungs: lungs, "no air|ml of air"),
])  # fmt: skip
def test_lungs_that_disease_has_filled_are_not_boxed(chest, name, change, reason):
    hu, lungs, spacing = chest
    found = lung_box(filled(hu, change(lungs)), spacing)
    assert isinstance(found, Doubt), name
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("share", "axis", "last"),
    [(0.15, 0, False), (0.3, 0, False), (0.45, 0, False), (0.3, 1, True), (0.15, 1, False), (0.1, 2, True)],
)
def test_what_is_filled_at_an_edge_still_lies_in_the_box_or_there_is_none(chest, share, axis, last):
    """Bases, backs, fronts and sides that are white: the air ends early, the margin reaches further."""
    hu, lungs, spacing = chest
    found = lung_box(filled(hu, rows(lungs, share, axis, last)), spacing)
    assert isinstance(found, Doubt) or holds(found, lungs)


@pytest.mark.parametrize("white", [0.0, 0.15, 0.3])
def test_white_bases_above_an_abdomen_lie_in_the_box(chest, white):
    """With tissue below and above, so that the box does not end where the scan does."""
    hu, lungs, spacing = chest
    tissue = filled(hu[:1], np.ones_like(lungs[:1]))
    tissue[:, :8], tissue[:, -8:], tissue[:, :, :8], tissue[:, :, -8:] = (-1000,) * 4
    below, above = np.repeat(tissue, 20, 0), np.repeat(tissue, 8, 0)
    stomach = ~lungs & (hu < -300)  # its air would stand for the lungs'
    stomach[20:], stomach[:, :16], stomach[:, -16:], stomach[:, :, :16], stomach[:, :, -16:] = (False,) * 5
    whole = np.concatenate([below, filled(hu, rows(lungs, white, 0, last=False) | stomach), above])
    where = np.concatenate([np.zeros(below.shape, bool), lungs, np.zeros(above.shape, bool)])
    found = lung_box(whole, spacing)
    assert not isinstance(found, Doubt) and holds(found, where)
    assert found[0][0] > 0 and found[0][1] < len(whole) - 1  # and not all of the abdomen


def test_a_scan_that_cuts_the_lungs_off_is_boxed_to_its_edge_or_not_at_all(chest):
    hu, lungs, spacing = chest
    for part in (slice(12, None), slice(0, -12), slice(16, 30)):
        found = lung_box(hu[part], spacing)
        assert isinstance(found, Doubt) or holds(found, lungs[part])
    assert isinstance(lung_box(hu[16:30], spacing), Doubt)  # a slab: too little to tell


@pytest.mark.parametrize("hu", [np.full((20, 30, 30), -1024, np.int16), np.full((20, 30, 30), 40, np.int16)])
def test_air_alone_and_tissue_alone_have_none(hu):
    assert isinstance(lung_box(hu, (5.0, 5.0, 5.0)), Doubt)


def test_it_takes_a_tenth_of_a_second_for_a_scan_of_the_usual_size():
    made = make_phantom(5, SHAPE, patient=4)
    hu = np.repeat(np.repeat(np.repeat(made.hu, 3, 0), 3, 1), 3, 2)
    began = time.process_time()
    box = lung_box(hu, tuple(step / 3 for step in made.spacing_zyx))
    assert time.process_time() - began < 1.0  # a wide margin
    assert holds(box, np.repeat(np.repeat(np.repeat(made.labels > 0, 3, 0), 3, 1), 3, 2))
