"""Geometry against SimpleITK, which has its own arithmetic for the same convention."""

import json
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from covidseg.scans.geometry import Geometry

ORIENTATIONS = [
    np.diag(signs) @ np.eye(3)[:, list(order)]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def rotation(degrees_xyz):
    """Rotation about x, then y, then z."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees_xyz).tolist())
    return np.reshape(turn.GetMatrix(), (3, 3))


def geometry(direction, shape=(3, 4, 5)):
    return Geometry(shape, (2.5, 0.7, 0.9), (10.0, -20.0, 30.5), tuple(np.ravel(direction)))


def image_of(grid, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_zyx[::-1])
    image.SetOrigin(grid.origin_xyz)
    image.SetDirection(grid.direction)
    return image


angles = st.tuples(*[st.floats(-30, 30)] * 3)


@given(st.sampled_from(ORIENTATIONS), angles, st.tuples(*[st.integers(0, 50)] * 3))
def test_position_of_a_voxel_is_simpleitks(orientation, degrees, index):
    grid = geometry(rotation(degrees) @ orientation, (51, 51, 51))
    expected = image_of(grid, np.zeros((51, 51, 51), np.uint8)).TransformIndexToPhysicalPoint(index)
    np.testing.assert_allclose(grid.to_mm(index), expected, atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(48))
def test_canonical_is_simpleitks_lps(orientation):
    grid = geometry(orientation)
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    oriented = sitk.DICOMOrient(image_of(grid, array), "LPS")
    turned = grid.canonical()
    np.testing.assert_array_equal(grid.to_canonical(array), sitk.GetArrayFromImage(oriented))
    np.testing.assert_allclose(turned.direction, np.eye(3).ravel(), atol=1e-12)
    np.testing.assert_allclose(turned.origin_xyz, oriented.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(turned.spacing_zyx, oriented.GetSpacing()[::-1])


@given(st.sampled_from(ORIENTATIONS), angles.filter(lambda a: sum(map(abs, a)) < 40))
def test_oblique_voxels_stay_where_they_are(orientation, degrees):
    """Every voxel keeps its physical place, and the turned axes are the closest to S, P, L."""
    grid = geometry(rotation(degrees) @ orientation)
    index_xyz = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape_zyx), indexing="ij")[::-1], -1)
    place = grid.to_mm(index_xyz)  # (z, y, x, 3)
    turned = grid.canonical()
    moved = np.stack([grid.to_canonical(place[..., i]) for i in range(3)], -1)
    index_xyz = np.stack(np.meshgrid(*(np.arange(n) for n in turned.shape_zyx), indexing="ij")[::-1], -1)
    np.testing.assert_allclose(turned.to_mm(index_xyz), moved, atol=1e-9)
    assert (np.diag(np.reshape(turned.direction, (3, 3))) > 0.7).all()


@given(st.sampled_from(ORIENTATIONS))
def test_there_and_back_is_the_same_array(orientation):
    grid = geometry(orientation)
    array = np.arange(120).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(grid.from_canonical(grid.to_canonical(array)), array)


def test_displacement_sees_a_shift_a_flip_and_another_spacing():
    grid = geometry(np.eye(3))
    assert grid.displacement_mm(grid) == 0
    shifted = Geometry(grid.shape_zyx, grid.spacing_zyx, (13.0, -16.0, 30.5), grid.direction)
    assert grid.displacement_mm(shifted) == pytest.approx(5)
    thicker = Geometry(grid.shape_zyx, (2.6, 0.7, 0.9), grid.origin_xyz, grid.direction)
    assert grid.displacement_mm(thicker) == pytest.approx(0.1 * 2.5)  # 2.5 voxels from the origin to the outer corner
    assert grid.displacement_mm(geometry(np.diag([1, 1, -1]))) == pytest.approx(2.5 * 5)
    assert grid.displacement_mm(geometry(np.eye(3), (3, 4, 6))) == np.inf


def test_json_round_trip_is_exact():
    grid = geometry(rotation((1, 2, 3)))
    assert Geometry.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize(
    "change",
    [
        {"shape_zyx": (3, 4)},
        {"shape_zyx": (0, 4, 5)},
        {"spacing_zyx": (1, 0, 1)},
        {"origin_xyz": (0, float("nan"), 0)},
        {"direction": (1,) * 8},
    ],
    ids=str,
)
def test_nonsense_is_refused(change):
    with pytest.raises(ValueError, match="must be"):
        Geometry(**{**geometry(np.eye(3)).to_dict(), **change})


def test_an_array_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="not on a grid"):
        geometry(np.eye(3)).to_canonical(np.zeros((5, 4, 3)))
