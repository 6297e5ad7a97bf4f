"""Input faults C1 to C5: masks that are not labels, or not of this scan. (C6 to C8 concern preparing, not reading.)"""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from covidseg.scans.geometry import Geometry
from covidseg.scans.read import read_mask
from covidseg.system.errors import BadInput

COUNT = settings(max_examples=40, deadline=None)
FORMATS = ["mask.nii", "mask.nii.gz", "mask.mha", "mask.nrrd"]
SHAPE = (3, 24, 28)


def labels(seed=0, values=(0, 1)):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), SHAPE)


def read_on(geometry, **options):
    return lambda path: read_mask(path, geometry, **options)


@COUNT
@given(error=st.floats(-9e-4, 9e-4), name=st.sampled_from(FORMATS))
def test_c01_nearly_whole_labels_are_rounded(error, name, make):
    """Truncation would turn 0.9999 into background."""
    with make.folder() as folder:
        path = make.any_format(folder / name, (labels() + np.float32(error)).astype(np.float32))
        mask, notes = read_mask(path, make.geometry(SHAPE))
        np.testing.assert_array_equal(mask, labels())
        assert mask.dtype == np.uint8 and bool(notes) == bool(
            np.float32(error) and (labels() + np.float32(error) != labels()).any()
        )


def test_c01_labels_behind_a_scale(tmp_path, make):
    path = make.nifti(tmp_path / "mask.nii", labels().astype(np.int16) * 10001, slope=(1e-4, 0))
    np.testing.assert_array_equal(read_mask(path, make.geometry(SHAPE))[0], labels())


@COUNT
@given(
    value=st.sampled_from([0.5, 1.4, 17.5, -1.0, 2.0, 255.0, np.nan, np.inf, 1.002]),
    count=st.integers(1, 50),
    name=st.sampled_from(FORMATS),
)
def test_c02_other_values_are_listed_with_counts(value, count, name, make, refused):
    with make.folder() as folder:
        mask = labels().astype(np.float32)
        mask.ravel()[:count] = value
        path = make.any_format(folder / name, mask)
        line = refused(path, "labels must be", read=read_on(make.geometry(SHAPE)))
        assert f"{np.float32(value):g} ({count} voxels)" in line


def test_c02_a_ct_is_no_mask(tmp_path, make, refused):
    path = make.nifti(tmp_path / "mask.nii", make.ct(SHAPE))
    line = refused(path, "labels must be", read=read_on(make.geometry(SHAPE)))
    assert "more others" in line and len(line) < 300


def test_c03_other_label_sets_need_a_map(tmp_path, make, refused):
    stored = labels(values=(0, 2, 5))
    path = make.nifti(tmp_path / "mask.nii", stored)
    refused(path, r"labels must be \[0, 1\], found", read=read_on(make.geometry(SHAPE)))
    mask, _ = read_mask(path, make.geometry(SHAPE), labels={2: 1, 5: 2})
    np.testing.assert_array_equal(mask, np.select([stored == 2, stored == 5], [1, 2], 0))
    merged, _ = read_mask(path, make.geometry(SHAPE), labels={2: 1, 5: 1})
    np.testing.assert_array_equal(merged, stored > 0)
    ignored, _ = read_mask(path, make.geometry(SHAPE), labels={2: 0, 5: 1})
    np.testing.assert_array_equal(ignored, stored == 5)


@pytest.mark.parametrize("shape", [(1, 24, 28), (28, 24, 3), (3, 24, 27), (3, 28, 24)])
def test_c04_another_size(shape, tmp_path, make, refused):
    path = make.nifti(tmp_path / "mask.nii", np.zeros(shape, np.uint8))
    line = refused(path, "voxels, its scan", read=read_on(make.geometry(SHAPE)))
    assert "28 x 24 x 3" in line


@COUNT
@given(
    field=st.sampled_from(["origin", "spacing", "direction"]),
    axis=st.integers(0, 2),
    voxels=st.floats(0.001, 3),
    name=st.sampled_from(FORMATS),
)
def test_c05_moved_by_less_or_more_than_a_tenth_of_a_voxel(field, axis, voxels, name, make):
    """The worst corner decides, and a voxel is the smallest side of one: 0.8 mm here."""
    scan = make.geometry(SHAPE)
    mm = voxels * 0.8
    change = np.zeros(3)
    change[axis] = mm
    if field == "origin":
        moved = Geometry(SHAPE, scan.spacing_zyx, tuple(scan.origin_xyz + change), scan.direction)
    elif field == "spacing":
        spacing = scan.spacing_zyx + change / SHAPE
        moved = Geometry(SHAPE, tuple(spacing), scan.origin_xyz, scan.direction)
    else:
        angle = mm / 30
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        moved = Geometry(SHAPE, scan.spacing_zyx, scan.origin_xyz, tuple(turn.ravel()))
    off = scan.displacement_mm(moved) / 0.8
    with make.folder() as folder:
        path = make.any_format(folder / name, labels(), moved)
        if off < 0.099:
            np.testing.assert_array_equal(read_mask(path, scan)[0], labels())
        elif off > 0.101:
            with pytest.raises(BadInput, match="mm from those of its scan"):
                read_mask(path, scan)


def test_c05_flipped_mask_of_the_same_array(tmp_path, make, refused):
    """What a comparison of arrays alone calls a perfect match: its voxels lie at the other side."""
    scan = make.geometry(SHAPE)
    flipped = make.geometry(SHAPE, np.diag([-1, 1, 1]), origin_xyz=tuple(scan.to_mm([SHAPE[2] - 1, 0, 0])))
    mask, notes = read_mask(make.nifti(tmp_path / "mask.nii", labels(), flipped), scan)
    assert np.array_equal(mask, labels()[:, :, ::-1]) and "another order or direction" in notes[0]
    elsewhere = make.geometry(SHAPE, np.diag([-1, 1, 1]))
    path = make.nifti(tmp_path / "elsewhere.nii", labels(), elsewhere)
    refused(path, "mm from those of its scan", read=read_on(scan))


@COUNT
@given(order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3), oblique=st.booleans())
def test_a_mask_in_another_axis_order_or_direction_lies_where_it_was_drawn(order, flips, oblique, make):
    """Against SimpleITK, which samples the mask at the places of the scan's voxels."""
    turn = sitk.VersorTransform((0.2, 0.5, -0.1), 0.3).GetMatrix() if oblique else np.eye(3).ravel()
    scan = make.geometry(SHAPE, np.reshape(turn, (3, 3)))
    image = sitk.GetImageFromArray(labels())
    image.SetSpacing(scan.spacing_zyx[::-1])
    image.SetOrigin(scan.origin_xyz)
    image.SetDirection(scan.direction)
    moved = sitk.Flip(sitk.PermuteAxes(image, order), flips)
    with make.folder() as folder:
        sitk.WriteImage(moved, str(folder / "mask.nrrd"))
        mask, notes = read_mask(folder / "mask.nrrd", scan)
    assert np.array_equal(mask, labels())
    assert bool(notes) == (moved.GetDirection() != image.GetDirection() or moved.GetSize() != image.GetSize())


def slicer_mask(path, geometry, drawn, start):
    """What 3D Slicer writes: the part of the scan's lattice that is drawn on."""
    image = sitk.GetImageFromArray(drawn)
    image.SetSpacing(geometry.spacing_zyx[::-1])
    image.SetOrigin(tuple(geometry.to_mm(start[::-1])))
    image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path))
    return path


def test_a_segmentation_of_3d_slicer_is_pasted_where_it_was_cut_out(tmp_path, make, refused):
    scan = make.geometry(SHAPE)
    whole = np.zeros(SHAPE, np.uint8)
    whole[1:3, 5:11, 7:20] = 1
    drawn = whole[1:3, 5:11, 7:20]
    mask, notes = read_mask(slicer_mask(tmp_path / "a.seg.nrrd", scan, drawn, (1, 5, 7)), scan)
    assert np.array_equal(mask, whole) and "a part of its scan" in notes[0]
    for name, start in (
        ("half.seg.nrrd", (1, 5.5, 7)),
        ("outside.seg.nrrd", (2, 5, 7)),
        ("before.seg.nrrd", (1, 5, -1)),
    ):
        refused(slicer_mask(tmp_path / name, scan, drawn, start), "voxels, its scan", read=read_on(scan))
    path = slicer_mask(tmp_path / "a.nrrd", scan, drawn, (1, 5, 7))  # of another program: a mask of something else
    refused(path, "voxels, its scan", read=read_on(scan))


def test_masks_pass_the_same_gate(tmp_path, make, refused):
    path = make.nifti(tmp_path / "mask.nii.gz", labels())
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "truncated", read=read_on(make.geometry(SHAPE)))
    refused(tmp_path, "is a folder", read=read_on(make.geometry(SHAPE)))


def test_an_empty_mask_is_a_mask(tmp_path, make):
    """A large empty mask compresses 1000 to 1, and is no bomb."""
    shape = (60, 256, 256)
    path = make.nifti(tmp_path / "mask.nii.gz", np.zeros(shape, np.uint8))
    assert np.prod(shape) > 500 * path.stat().st_size
    assert not read_mask(path, make.geometry(shape))[0].any()
