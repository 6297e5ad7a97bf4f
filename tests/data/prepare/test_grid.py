"""The prepared grid and the way back, against scipy and SimpleITK."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from covidseg.data.prepare.grid import Grid, body_box
from covidseg.scans.geometry import Geometry

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
WHOLE = Geometry((20, 24, 28), (2.0, 1.5, 1.5), (0, 0, 0), IDENTITY)


def ball(shape=(20, 24, 28), centre=(10, 12, 14), radius=6.0):
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def whole_grid(geometry, shape_zyx):
    """A grid without a crop."""
    canonical = geometry.canonical()
    box = tuple((0, n) for n in canonical.shape_zyx)
    spacing = tuple(n * mm / m for n, mm, m in zip(canonical.shape_zyx, canonical.spacing_zyx, shape_zyx, strict=True))
    return Grid(geometry, box, tuple(shape_zyx), spacing)


def test_finer_grid_is_plain_linear_interpolation(rng):
    hu = rng.integers(-1000, 1000, WHOLE.shape_zyx).astype(np.int16)
    grid = whole_grid(WHOLE, (31, 40, 28))
    at = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(hu.shape, grid.shape_zyx, strict=True)), indexing="ij"
    )
    expected = ndimage.map_coordinates(hu.astype(float), at, order=1, mode="nearest")
    assert np.abs(grid.image(hu) - expected).max() <= 0.51  # rounding to whole HU


def test_finer_grid_equals_simpleitk(rng):
    hu = rng.integers(-1000, 1000, WHOLE.shape_zyx).astype(np.int16)
    grid = whole_grid(WHOLE, (33, 37, 41))
    image = sitk.GetImageFromArray(hu.astype(np.float32))
    image.SetSpacing(WHOLE.spacing_zyx[::-1])
    target = sitk.Image(grid.shape_zyx[::-1], sitk.sitkFloat32)
    target.SetSpacing(grid.spacing_zyx[::-1])
    target.SetOrigin(
        [(new - old) / 2 for new, old in zip(grid.spacing_zyx[::-1], WHOLE.spacing_zyx[::-1], strict=True)]
    )
    expected = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear, np.nan))
    inside = ~np.isnan(expected)  # SimpleITK has no value beyond the outermost voxel centres
    assert inside.mean() > 0.8
    assert np.abs(grid.image(hu) - expected)[inside].max() <= 0.51


def test_coarser_grid_averages(rng):
    noise = rng.normal(0, 100, (40, 40, 40)).astype(np.int16)
    geometry = Geometry(noise.shape, (1, 1, 1), (0, 0, 0), IDENTITY)
    prepared = whole_grid(geometry, (10, 10, 10)).image(noise)
    assert prepared.std() < 25  # a picked voxel would keep 100
    assert abs(prepared.mean() - noise.mean()) < 2
    ramp = np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None] * 10, noise.shape)
    middles = whole_grid(geometry, (10, 10, 10)).image(ramp)[1:-1, 0, 0]
    assert np.abs(middles - (np.arange(1, 9) * 40 + 15)).max() <= 1  # no shift


def test_same_shape_changes_nothing(rng):
    hu = rng.integers(-1000, 1000, WHOLE.shape_zyx).astype(np.int16)
    labels = rng.integers(0, 3, WHOLE.shape_zyx).astype(np.uint8)
    grid = whole_grid(WHOLE, WHOLE.shape_zyx)
    assert np.array_equal(grid.image(hu), hu)
    assert np.array_equal(grid.labels(labels), labels)
    assert np.array_equal(grid.scores_to_native(np.eye(3)[labels].transpose(3, 0, 1, 2)), labels)


def test_labels_are_the_largest_share(rng):
    labels = rng.integers(0, 3, WHOLE.shape_zyx).astype(np.uint8)
    grid = whole_grid(WHOLE, (29, 31, 37))
    at = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(labels.shape, grid.shape_zyx, strict=True)), indexing="ij"
    )
    shares = [ndimage.map_coordinates((labels == c).astype(float), at, order=1, mode="nearest") for c in range(3)]
    clear = np.sort(shares, axis=0)[-1] - np.sort(shares, axis=0)[-2] > 1e-5
    assert np.array_equal(grid.labels(labels)[clear], np.argmax(shares, axis=0)[clear])


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_to_native_is_interpolation_then_argmax(rng, classes, monkeypatch):
    monkeypatch.setattr("covidseg.data.prepare.grid.CHUNK_VOXELS", 3 * 24 * 28)  # several slabs
    grid = whole_grid(WHOLE, (13, 30, 20))
    scores = rng.normal(0, 1, (classes, *grid.shape_zyx)).astype(np.float32)
    at = np.meshgrid(
        *((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(WHOLE.shape_zyx, grid.shape_zyx, strict=True)),
        indexing="ij",
    )
    native = [ndimage.map_coordinates(score.astype(float), at, order=1, mode="nearest") for score in scores]
    clear = np.sort(native, axis=0)[-1] - np.sort(native, axis=0)[-2] > 1e-4
    assert np.array_equal(grid.scores_to_native(scores)[clear], np.argmax(native, axis=0)[clear])


def test_scores_of_a_wrong_shape_are_refused():
    grid = whole_grid(WHOLE, (10, 10, 10))
    for shape in [(1, 10, 10, 10), (2, 10, 10, 11), (10, 10, 10)]:
        with pytest.raises(ValueError, match="scores of shape"):
            grid.scores_to_native(np.zeros(shape, np.float32))


def signed_permutations():
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, column] = sign
            yield tuple(matrix.ravel())


@pytest.mark.parametrize("direction", list(signed_permutations()))
def test_all_48_orientations_prepare_alike_and_come_back(direction):
    """The same patient stored in any axis order gives the same prepared array, and the mask its own order again."""
    canonical = Geometry((20, 24, 28), (2.0, 1.5, 1.7), (3.0, -4.0, 5.0), IDENTITY)
    body = ball(radius=9.5)
    labels = np.where(ball(centre=(8, 10, 17), radius=3.5), 2, ball(radius=7.0)).astype(np.uint8)
    hu = np.where(body, 40 + np.arange(28, dtype=np.int16), -1000).astype(np.int16)
    axes, _ = Geometry((2, 2, 2), (1, 1, 1), (0, 0, 0), direction)._turn
    shape, spacing = [0] * 3, [0.0] * 3
    for place, axis in enumerate(axes):
        shape[axis], spacing[axis] = canonical.shape_zyx[place], canonical.spacing_zyx[place]
    stored = Geometry(shape, spacing, (0, 0, 0), direction)
    plain = Grid.plan(hu, canonical, (2.5, 2.0, 2.0))
    turned = Grid.plan(np.ascontiguousarray(stored.from_canonical(hu)), stored, (2.5, 2.0, 2.0))
    assert turned.box_zyx == plain.box_zyx and turned.shape_zyx == plain.shape_zyx
    assert np.array_equal(turned.image(stored.from_canonical(hu)), plain.image(hu))
    prepared = plain.labels(labels)
    assert np.array_equal(turned.labels(stored.from_canonical(labels)), prepared)
    scores = np.eye(3, dtype=np.float32)[prepared].transpose(3, 0, 1, 2)
    back = turned.scores_to_native(scores)
    assert back.shape == stored.shape_zyx and back.flags.c_contiguous
    assert np.array_equal(stored.to_canonical(back), plain.scores_to_native(scores))
    for label in (1, 2):
        overlap = 2 * ((stored.to_canonical(back) == label) & (labels == label)).sum()
        assert overlap / ((back == label).sum() + (labels == label).sum()) > 0.8


def test_body_box_leaves_out_air_and_the_table():
    hu = np.full((30, 100, 140), -1000, np.int16)
    hu[:, 20:70, 20:120] = 20
    hu[5:25, 30:60, 30:110] = -850  # lungs
    hu[:, 91:92, 5:135] = 200  # table
    (z0, z1), (y0, y1), (x0, x1) = body_box(hu, (3.0, 2.0, 2.0))
    assert (z0, z1) == (0, 30)
    assert y0 <= 20 and 70 <= y1 < 90 and x0 <= 20 and 120 <= x1 < 135
    assert 20 - y0 <= 8 and y1 - 70 <= 8  # 10 mm and one coarse voxel


def test_body_box_keeps_both_walls_of_a_crop_without_a_middle():
    hu = np.full((10, 60, 40), -850, np.int16)
    hu[:, :8], hu[:, -6:] = 30, 30
    assert body_box(hu, (3.0, 1.0, 1.0)) == ((0, 10), (0, 60), (0, 40))


def test_all_air_keeps_the_whole_volume():
    grid = Grid.plan(np.full(WHOLE.shape_zyx, -1000, np.int16), WHOLE, (2.5, 1.5, 1.5))
    assert not grid.body_found
    assert grid.box_zyx == ((0, 20), (0, 24), (0, 28))
    assert grid.image(np.full(WHOLE.shape_zyx, -1000, np.int16)).max() == -1000


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 9)] * 3),
    target=st.tuples(*[st.floats(0.5, 6)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_any_size_and_spacing_works_and_covers_the_same_millimetres(shape, spacing, target):
    geometry = Geometry(shape, spacing, (0, 0, 0), IDENTITY)
    hu = np.full(shape, 40, np.int16)
    grid = Grid.plan(hu, geometry, target)
    assert (grid.image(hu) == 40).all() and grid.image(hu).dtype == np.int16
    assert (grid.labels(np.ones(shape, np.uint8)) == 1).all()
    assert np.allclose(np.multiply(grid.shape_zyx, grid.spacing_zyx), np.multiply(shape, spacing))
    scores = np.stack([np.zeros(grid.shape_zyx), np.ones(grid.shape_zyx)]).astype(np.float32)
    assert (grid.scores_to_native(scores) == 1).all()


def test_grid_survives_json():
    grid = Grid.plan(np.where(ball(), 40, -1000).astype(np.int16), WHOLE, (2.5, 1.5, 1.5))
    assert Grid.from_dict(grid.to_dict()) == grid
