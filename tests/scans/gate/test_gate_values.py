"""Input faults B1 to B12: values that are no Hounsfield units, and places that no voxel can have."""

import re
import struct
import subprocess
import sys
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covidseg.config.paths import CONF
from covidseg.scans.gate.grids import apart
from covidseg.scans.gate.values import objection_to_hu
from covidseg.scans.read import read_mask, read_scan
from covidseg.scans.write import write_mask
from covidseg.system.errors import BadInput

COUNT = settings(max_examples=30, deadline=None)
ALL_FORMATS = ["scan.nii", "scan.nii.gz", "scan.mha", "scan.nrrd"]
SMALL = (3, 24, 28)
ORIENTATIONS = [
    np.diag(signs) @ np.eye(3)[:, list(order)]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
PIXDIM, SCALING, QFORM_CODE, SFORM_CODE, QOFFSET, SROW, UNITS = 76, 112, 252, 254, 268, 280, 123


def rotation(degrees_xyz):
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees_xyz).tolist())
    return np.reshape(turn.GetMatrix(), (3, 3))


@COUNT
@given(bad=st.sampled_from([np.nan, np.inf, -np.inf]), count=st.integers(1, 2016), name=st.sampled_from(ALL_FORMATS))
def test_b01_not_finite(bad, count, name, make, refused):
    """SimpleITK would read them as 0 from NIfTI."""
    with make.folder() as folder:
        array = make.ct(SMALL).astype(np.float32)
        array.ravel()[:count] = bad
        path = make.any_format(folder / name, array)
        refused(path, f"{count} of 2016 voxels are NaN or infinite")
        scan = read_scan(path, assume={"fill": -1024})
        assert (scan.voxels.ravel()[:count] == -1024).all() and any("set to -1024 HU" in note for note in scan.notes)
        np.testing.assert_array_equal(scan.voxels.ravel()[count:], make.ct(SMALL).ravel()[count:])


def save(image, path):
    nib.save(image, path)
    return path


def test_b02_not_one_volume_of_numbers(tmp_path, make, refused):
    ct = make.ct().transpose(2, 1, 0)
    rgb = np.zeros(ct.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    wrong = {
        "4d.nii": nib.Nifti1Image(np.stack([ct, ct], -1), np.eye(4)),
        "5d.nii": nib.Nifti1Image(np.stack([ct, ct], -1)[..., None, :], np.eye(4)),
        "2d.nii": nib.Nifti1Image(ct[..., 0], np.eye(4)),
        "rgb.nii": nib.Nifti1Image(rgb, np.eye(4)),
        "complex.nii": nib.Nifti1Image(ct.astype(np.complex64), np.eye(4)),
    }
    for name, image in wrong.items():
        refused(save(image, tmp_path / name), "needs one 3-D scalar volume")
    refused(save(nib.Nifti2Image(ct, np.eye(4)), tmp_path / "two.nii"), "NIfTI-2")
    for suffix in ("mha", "nrrd"):
        image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.int16), isVector=True)
        sitk.WriteImage(image, str(tmp_path / f"vector.{suffix}"))
        refused(tmp_path / f"vector.{suffix}", "3-D")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.int16)), str(tmp_path / f"flat.{suffix}"))
        refused(tmp_path / f"flat.{suffix}", "3-D")


def test_b02_a_single_time_point_is_a_volume(tmp_path, make):
    image = nib.Nifti1Image(make.ct().transpose(2, 1, 0)[..., None], np.diag([-0.8, -0.9, 2.5, 1]))
    np.testing.assert_array_equal(read_scan(save(image, tmp_path / "scan.nii")).voxels, make.ct())


def test_b02_header_that_contradicts_itself(tmp_path, make, refused):
    refused(
        make.nifti(tmp_path / "scan.nii", make.ct(), patch=[(72, "<h", 8)]), "contradicts itself: i2 voxels of 8 bits"
    )
    refused(make.nifti(tmp_path / "scan.nii", make.ct(), patch=[(108, "<f", 1e9)]), "vox_offset")
    path = make.itk(tmp_path / "scan.mha", make.ct())
    path.write_bytes(path.read_bytes().replace(b"Offset", b"Offset = 1 2 3\nOffset", 1))
    refused(path, "'Offset' twice")


DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_b03_every_type_in_nifti(dtype, order, tmp_path, make):
    """Bytes hold HU / 16, unsigned types HU + 1024: scaling brings them back."""
    coarse = dtype[1] == "1"
    hu = (make.ct() // 16 * 16) if coarse else make.ct()
    hu = np.clip(hu, -1024, 1024)
    slope, intercept = (16.0 if coarse else 1.0), (-1024.0 if dtype[0] == "u" else 0.0)
    array = ((hu - intercept) / slope).astype(order + dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(slope, intercept)
    header.set_xyzt_units("mm")
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-0.8, -0.9, 2.5, 1]), header)
    raw = bytearray(image.to_bytes())
    struct.pack_into(f"{order}2f", raw, SCALING, slope, intercept)
    raw = raw[:352] + array.tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(scan.voxels, hu)
    np.testing.assert_array_equal(nib.load(tmp_path / "scan.nii").get_fdata().transpose(2, 1, 0), hu)
    assert scan.geometry.spacing_zyx == pytest.approx((2.5, 0.9, 0.8))


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "f4", "f8"])
def test_b03_every_type_in_text_formats(dtype, compress, name, tmp_path, make):
    path = make.itk(tmp_path / name, make.ct().astype(dtype), compress=compress)
    np.testing.assert_array_equal(read_scan(path).voxels, make.ct())


def test_b03_big_endian_text_formats(tmp_path, make):
    little, big = make.ct().tobytes(), make.ct().astype(">i2").tobytes()
    path = make.itk(tmp_path / "scan.mha", make.ct())
    raw = path.read_bytes().replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True")
    path.write_bytes(raw.replace(little, big))
    np.testing.assert_array_equal(read_scan(path).voxels, make.ct())
    path = make.itk(tmp_path / "scan.nrrd", make.ct())
    path.write_bytes(path.read_bytes().replace(b"endian: little", b"endian: big").replace(little, big))
    np.testing.assert_array_equal(read_scan(path).voxels, make.ct())


@COUNT
@given(
    slope=st.sampled_from([2.0, 0.5, 1.0, 0.0, np.nan, -1.0, 0.1]),
    intercept=st.sampled_from([0.0, -1024.0, np.nan, 7.0]),
)
def test_b04_scaling(slope, intercept, make):
    """Refused, or as nibabel scales it."""
    with make.folder() as folder:
        array = make.ct(SMALL)
        if np.isfinite(slope) and slope and np.isfinite(intercept):
            array = np.rint((array - intercept) / slope).astype(np.int16)
        path = make.nifti(folder / "scan.nii", array, slope=(slope, intercept))
        unscaled = not slope or np.isnan(slope)
        ambiguous = unscaled and intercept not in (0.0,) and not np.isnan(intercept)
        if ambiguous or (not unscaled and np.isnan(intercept)):
            with pytest.raises(BadInput, match="has no one meaning"):
                read_scan(path)
            return
        expected = np.clip(nib.load(path).get_fdata().transpose(2, 1, 0), -1024, 3071)
        assert np.abs(read_scan(path).voxels - expected).max() <= 0.5


@pytest.mark.parametrize("scaling", [(np.inf, 0), (1, np.inf), (2, np.nan), (0, 100), (np.nan, 100), (-np.inf, 0)])
def test_b04_scaling_that_readers_disagree_on(scaling, tmp_path, make, refused):
    refused(make.nifti(tmp_path / "scan.nii", make.ct(), slope=scaling), "no one meaning")


NOT_HU = {
    "no rescale": lambda hu: (hu.astype(np.int32) + 1024).astype(np.uint16),
    "0..255": lambda hu: np.clip((hu + 1250) / 1500 * 255, 0, 255).astype(np.uint8),
    "0..1": lambda hu: np.clip((hu + 1250) / 1500, 0, 1).astype(np.float32),
    "normalised": lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32),
    "half": lambda hu: (hu // 2).astype(np.int16),
    "double": lambda hu: (hu * 2).astype(np.int16),
    "shifted twice": lambda hu: (hu - 1024).astype(np.int16),
    "soft tissue window": lambda hu: np.clip(hu, -160, 240),
    "inverted": lambda hu: -hu,
}


@pytest.mark.parametrize("how", NOT_HU)
def test_b05_not_hu(how, tmp_path, make, refused):
    """The refusal shows the range and percentiles it was decided on; the user may vouch for the values."""
    path = make.nifti(tmp_path / "scan.nii", NOT_HU[how](make.ct()))
    line = refused(path, "not Hounsfield units")
    assert "range" in line and "5/50/95%" in line
    override = re.search(r"reading\.assume\.hu=true", line)[0]  # of predict.py, and it takes it
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("predict", overrides=[override]).reading.assume.hu is True
    assert read_scan(path, assume={"hu": True}).voxels.dtype == np.int16


def test_b05_assumptions_bring_hu_back(tmp_path, make, refused):
    hu = np.clip(make.ct(), -1024, 250)
    raw = make.nifti(tmp_path / "raw.nii", (hu.astype(np.int32) + 1024).astype(np.uint16))
    np.testing.assert_array_equal(read_scan(raw, assume={"offset": -1024}).voxels, hu)
    grey = np.rint((hu + 1250.0) / 1500 * 255).astype(np.uint8)
    for dtype in (np.uint8, np.float64):
        path = make.nifti(tmp_path / "grey.nii", grey.astype(dtype))
        line = refused(path, "not Hounsfield units")
        assert line.endswith("or reading.assume.window_8bit=[-1250,250] if 0 and 255 stand for these HU")
        back = read_scan(path, assume={"window_8bit": [-1250, 250]}).voxels
        np.testing.assert_array_equal(back, np.clip(np.rint(grey / 255 * 1500 - 1250), -1024, None))
        assert np.abs(back - hu).max() <= 3  # half a grey level
    refused(make.nifti(tmp_path / "ct.nii", hu), "no 8-bit grey levels", assume={"window_8bit": [-1250, 250]})
    with pytest.raises(BadInput, match="unknown option 'ofset'"):
        read_scan(raw, assume={"ofset": -1024})
    with pytest.raises(BadInput, match="three letters"):
        read_scan(raw, assume={"orientation": "LLS"})
    with pytest.raises(BadInput, match=r"\[low, high\]"):
        read_scan(raw, assume={"window_8bit": [250, -1250]})


def test_b05_crops_slabs_padding_and_metal_are_hu(tmp_path, make):
    ct = make.ct((12, 80, 96))
    padded = ct.copy()
    padded[:, :10], padded[:, -10:] = -2048, -3024
    padded[5, 40, 40] = 12000
    scan = read_scan(make.nifti(tmp_path / "padded.nii", padded))
    assert scan.voxels.min() == -1024 and scan.voxels.max() == 3071
    assert any("down to -3024" in note for note in scan.notes) and any("up to 12000" in note for note in scan.notes)
    for name, crop in {"lung": ct[:, 20:60, 15:45], "slab": ct[:1], "right": ct[..., :48]}.items():
        read_scan(make.nifti(tmp_path / f"{name}.nii", crop))


def round_field(ct, padding):
    """A scanner's field of view is round; what lies outside is padding, about a fifth of the volume."""
    _, y, x = np.ogrid[-1:1:1j, -1 : 1 : ct.shape[1] * 1j, -1 : 1 : ct.shape[2] * 1j]
    return np.where(y**2 + x**2 > 1, padding, ct).astype(np.int16)


@pytest.mark.parametrize(("padding", "offset"), [(-2048, 1024), (-2024, 1000), (-2000, 1024)])
def test_b05_padding_is_not_taken_for_air_when_the_intercept_was_lost(padding, offset, tmp_path, make, refused):
    hu = round_field(make.ct((6, 80, 96)), padding)
    assert (hu == padding).mean() > 0.15
    np.testing.assert_array_equal(read_scan(make.nifti(tmp_path / "good.nii", hu)).voxels, np.maximum(hu, -1024))
    path = make.nifti(tmp_path / "stored.nii", hu + offset)
    refused(path, r"HU \+ 1024\?")
    np.testing.assert_array_equal(read_scan(path, assume={"offset": -offset}).voxels, np.maximum(hu, -1024))


@pytest.mark.parametrize("air", [-1024, -1000])
def test_b05_air_of_one_value_is_air(air, tmp_path, make):
    """Air cleaned to one value passes with lungs, without them, and around a water phantom."""
    ct = make.ct((6, 80, 96))
    clean = np.where(ct < -950, air, ct).astype(np.int16)
    read_scan(make.nifti(tmp_path / "clean.nii", clean))
    read_scan(make.nifti(tmp_path / "field.nii", round_field(clean, -2048)))
    no_lung = np.where((ct < -500) & (ct > -950), 40, clean).astype(np.int16)
    read_scan(make.nifti(tmp_path / "shoulders.nii", no_lung))
    read_scan(make.nifti(tmp_path / "water.nii", np.where(no_lung > -500, 0, air).astype(np.int16)))


def test_b05_rule_on_histograms():
    """The rule alone: 90% tissue and a little lung pass wherever they lie in CT, and nowhere else."""

    def histogram(**parts):
        counts = np.zeros(8192, np.int64)
        for name, count in parts.items():
            counts[int(name.replace("m", "-").lstrip("v")) + 4096] += count
        return counts

    assert objection_to_hu(histogram(v40=900, vm850=100)) is None
    assert objection_to_hu(histogram(v40=900, vm850=9, vm3024=500)) is not None
    assert "no air" in objection_to_hu(histogram(v1064=900, v174=100))
    assert "soft tissue would lie at 1000" in objection_to_hu(histogram(v1000=900, vm850=100))
    assert "below -1100" in objection_to_hu(
        histogram(v40=900, vm850=100, vm1500=50, vm1510=50, vm1520=50, vm1530=50, vm1540=50)
    )
    assert objection_to_hu(histogram(v0=5)) is None


@COUNT
@given(where=st.sampled_from(["shift", "flip", "scale"]), axis=st.integers(0, 2), amount=st.floats(0.5, 50))
def test_b06_sform_and_qform_disagree(where, axis, amount, make, refused):
    with make.folder() as folder:
        geometry = make.geometry(SMALL)
        affine = np.column_stack([np.diag([-1, -1, 1]) @ geometry.step_mm, np.diag([-1, -1, 1]) @ geometry.origin_xyz])
        if where == "shift":
            affine[axis, 3] += amount
        elif where == "flip":
            affine[axis, :3] *= -1
        else:
            affine[:, axis] *= 1 + amount / 20
        path = make.nifti(folder / "scan.nii", make.ct(SMALL), patch=[(SROW, "<12f", *affine.ravel())])
        assert "mm apart" in refused(path, "place its corners")


def test_b06_within_a_tenth_of_a_voxel_is_agreement(tmp_path, make, refused):
    def shifted(mm):
        return make.nifti(tmp_path / "scan.nii", make.ct(), patch=[(QOFFSET, "<f", 20 + mm)])

    read_scan(shifted(0.079))
    refused(shifted(0.081), "sform and qform")


def test_b06_one_of_them_is_enough_and_none_is_not(tmp_path, make, refused):
    both = read_scan(make.nifti(tmp_path / "both.nii", make.ct())).geometry
    for offset in (QFORM_CODE, SFORM_CODE):
        one = read_scan(make.nifti(tmp_path / "one.nii", make.ct(), patch=[(offset, "<h", 0)])).geometry
        assert both.displacement_mm(one) < 1e-4
    neither = make.nifti(tmp_path / "none.nii", make.ct(), patch=[(QFORM_CODE, "<2h", 0, 0)])
    refused(neither, "nothing about orientation")
    assumed = read_scan(neither, assume={"orientation": "RPS"}).geometry
    np.testing.assert_array_equal(np.reshape(assumed.direction, (3, 3)), np.diag([-1, 1, 1]))
    mask = make.nifti(tmp_path / "mask.nii", (make.ct() > 0).astype(np.uint8), patch=[(QFORM_CODE, "<2h", 0, 0)])
    refused(mask, "nothing about orientation", read=lambda path: read_mask(path, assumed))
    assert read_mask(mask, assumed, assume={"orientation": "RPS"})[0].any()
    refused(make.nifti(tmp_path / "code.nii", make.ct(), patch=[(SFORM_CODE, "<h", 77)]), "mean nothing")


def test_b06_text_formats_without_an_orientation(tmp_path, make, refused):
    path = make.itk(tmp_path / "scan.mha", make.ct())
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    refused(path, "nothing about orientation")
    assert read_scan(path, assume={"orientation": "LPS"}).geometry == make.geometry()
    (tmp_path / "scan.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 48 40 6\nspacings: 0.8 0.9 2.5\nencoding: raw\nendian: little\n\n"
        + make.ct().tobytes()
    )
    refused(tmp_path / "scan.nrrd", "nothing about orientation")
    scan = read_scan(tmp_path / "scan.nrrd", assume={"orientation": "LPS"})
    assert scan.geometry.spacing_zyx == (2.5, 0.9, 0.8)


@COUNT
@given(exponent=st.floats(-7, -1), axis=st.integers(0, 1))
def test_b07_shear(exponent, axis, make, refused):
    shear = 10**exponent
    with make.folder() as folder:
        step = make.geometry(SMALL).step_mm.copy()
        step[axis, 2] += shear * step[2, 2]
        sform = np.column_stack([np.diag([-1, -1, 1]) @ step, [20, 30, -100]])
        patch = [(SROW, "<12f", *sform.ravel()), (QFORM_CODE, "<h", 0)]
        path = make.nifti(folder / "scan.nii", make.ct(SMALL), patch=patch)
        moved = shear / 2 * SMALL[0] * step[2, 2] / 0.8  # voxels, at the corner where axes at right angles lie off most
        if moved <= 0.02:
            scan = read_scan(path).geometry
            cosines = np.reshape(scan.direction, (3, 3))
            assert np.abs(cosines.T @ cosines - np.eye(3)).max() <= 2e-5
            assert not apart(scan, make.geometry(SMALL))
        elif moved >= 0.1:
            refused(path, "sheared")


def test_direction_cosines_of_four_digits_are_at_right_angles(tmp_path, make):
    """As many scanners write them; the voxels lie where they did to a hundredth of their size."""
    row = np.array([0.9919, 0.0762, 0.1015])
    column = np.cross([0.0715, 0.0, 0.9974], row)
    exact = np.column_stack([row, column / np.linalg.norm(column), np.zeros(3)])
    exact[:, 0] /= np.linalg.norm(exact[:, 0])
    exact[:, 2] = np.cross(exact[:, 0], exact[:, 1])
    rounded = np.round(exact, 4)
    assert np.abs(rounded.T @ rounded - np.eye(3)).max() > 1e-5
    spacing = np.array([0.8, 0.9, 2.5])
    sform = np.column_stack([np.diag([-1, -1, 1]) @ rounded * spacing, [20, 30, -100]])
    patch = [(SROW, "<12f", *sform.ravel()), (QFORM_CODE, "<h", 0)]
    scan = read_scan(make.nifti(tmp_path / "scan.nii", make.ct((30, 64, 72)), patch=patch)).geometry
    cosines = np.reshape(scan.direction, (3, 3))
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(cosines, rounded, atol=1e-4)


def test_near_lossless_padding_is_padding(tmp_path, make):
    """An archive that compresses nearly without loss leaves a padding that varies by one."""
    ct = make.ct((8, 64, 64))
    y, x = np.ogrid[:64, :64]
    outside = np.broadcast_to((y - 32) ** 2 + (x - 32) ** 2 > 31**2, ct.shape)
    for spread, fine in ((1, True), (40, False)):
        noisy = ct.copy()
        noisy[outside] = -2000 + np.random.default_rng(0).integers(-spread, spread + 1, int(outside.sum()))
        path = make.nifti(tmp_path / f"{spread}.nii", noisy)
        if fine:
            assert any("padding" in note for note in read_scan(path).notes)
        else:
            with pytest.raises(BadInput, match="values vary below -1100"):
                read_scan(path)


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0), (-0.8, -0.9, 0, 0), (np.inf, 0, 0, 0)], ids=str)
def test_b07_singular_or_not_a_number(row, tmp_path, make, refused):
    for codes in ((1, 1), (0, 1)):
        patch = [(SROW, "<4f", *row), (QFORM_CODE, "<2h", *codes)]
        refused(make.nifti(tmp_path / "scan.nii", make.ct(), patch=patch), "voxels of|sheared|NaN|apart")
    patch = [(256, "<f", np.nan), (SFORM_CODE, "<h", 0)]
    refused(make.nifti(tmp_path / "scan.nii", make.ct(), patch=patch), "no rotation")


@pytest.mark.parametrize("units, name", [(1, "metres"), (3, "micrometres"), (5, "unknown")])
def test_b08_units(units, name, tmp_path, make, refused):
    refused(make.nifti(tmp_path / "scan.nii", make.ct(), patch=[(UNITS, "<B", units)]), name)


@pytest.mark.parametrize("mm", [0, -0.8, np.nan, np.inf, 0.01, 50, 700, 0.0007])
@pytest.mark.parametrize("name", ["scan.nii", "scan.mha", "scan.nrrd"])
def test_b08_impossible_spacing(mm, name, tmp_path, make, refused):
    if name == "scan.nii":
        path = make.nifti(tmp_path / name, make.ct(), patch=[(PIXDIM + 4, "<f", mm)])
    else:
        path = make.itk(tmp_path / name, make.ct())
        spoilt = path.read_bytes().replace(b"0.80000000000000004", str(mm).encode(), 1)
        assert spoilt != path.read_bytes()
        path.write_bytes(spoilt)
        if name == "scan.nrrd" and mm == -0.8:  # a flip, which NRRD may say this way
            return
    refused(path, "voxels of .* mm, CT has")


def test_b08_longer_than_a_metre(tmp_path, make, refused):
    long = make.ct((120, 24, 28))
    refused(make.nifti(tmp_path / "scan.nii", long, make.geometry(long.shape, spacing_xyz=(1, 1, 9))), "1080 mm long")


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(48))
def test_b09_mask_returns_on_the_grid_of_the_scan(orientation, tmp_path, make):
    """All 48 orientations, straight and oblique: the geometry is bit-equal, and where SimpleITK and nibabel see it."""
    mask = (np.random.default_rng(0).random(SMALL) > 0.5).astype(np.uint8)
    for degrees in ((0, 0, 0), (3, -20, 30)):
        geometry = make.geometry(SMALL, rotation(degrees) @ orientation)
        for name in ALL_FORMATS:
            scan = read_scan(make.any_format(tmp_path / name, make.ct(SMALL), geometry))
            assert scan.geometry.displacement_mm(geometry) < 1e-4
            np.testing.assert_array_equal(scan.voxels, make.ct(SMALL))
            out = tmp_path / f"mask-{name}"
            write_mask(out, mask, scan.geometry, overwrite=True)
            again = read_scan(out, assume={"hu": True})
            np.testing.assert_array_equal(again.voxels, mask)
            if name == "scan.nrrd" and any(degrees):  # direction times spacing as text: the last bit may move
                np.testing.assert_allclose(again.geometry.corners_mm(), scan.geometry.corners_mm(), atol=1e-10)
            else:
                assert again.geometry == scan.geometry
            (tmp_path / name).unlink()
            seen = sitk.ReadImage(str(out))
            last = tuple(n - 1 for n in seen.GetSize())
            np.testing.assert_array_equal(sitk.GetArrayFromImage(seen), mask)
            np.testing.assert_allclose(seen.TransformIndexToPhysicalPoint(last), geometry.to_mm(last), atol=1e-4)
            if ".nii" in name:
                place = nib.load(out).affine @ [*last, 1] * [-1, -1, 1, 1]
                np.testing.assert_allclose(place[:3], geometry.to_mm(last), atol=1e-4)
                np.testing.assert_allclose(nib.load(out).get_qform(), nib.load(out).get_sform(), atol=1e-5)
            out.unlink()


@COUNT
@given(
    degrees=st.tuples(*[st.floats(-30, 30)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    only=st.sampled_from(["both", "qform", "sform"]),
)
@example(degrees=(1.0, 0.0, 1.0), orientation=np.diag([1.0, -1.0, 1.0]), origin=(0.0, 0.0, 0.0), only="qform")
def test_b09_any_rotation_survives_nifti_to_the_last_bit(degrees, orientation, origin, only, make):
    """Whether the scan came with a matrix, a quaternion or both."""
    patch = {"both": [], "qform": [(SFORM_CODE, "<h", 0)], "sform": [(QFORM_CODE, "<h", 0)]}[only]
    with make.folder() as folder:
        geometry = make.geometry(SMALL, rotation(degrees) @ orientation, origin_xyz=origin)
        first = read_scan(make.nifti(folder / "scan.nii", make.ct(SMALL), geometry, patch=patch)).geometry
        # A quaternion's first part is the root of what float32 leaves of 1: near half a turn it is known to 3e-4 only.
        turn = 2 * np.sqrt(1e-7) if only == "qform" else 0.0
        diagonal = np.linalg.norm(geometry.corners_mm()[0] - geometry.corners_mm(), axis=1).max()
        assert first.displacement_mm(geometry) < 1e-3 + turn * diagonal
        write_mask(folder / "mask.nii", np.zeros(SMALL, np.uint8), first)
        assert read_scan(folder / "mask.nii").geometry == first


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "LPS", "RAS"])
def test_b09_nrrd_in_another_space(space, tmp_path, make):
    geometry = make.geometry(direction=rotation((5, 10, 15)))
    path = make.itk(tmp_path / "scan.nrrd", make.ct(), geometry)
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", space.encode()))
    image = sitk.ReadImage(str(path))
    last = tuple(n - 1 for n in image.GetSize())
    np.testing.assert_allclose(
        read_scan(path).geometry.to_mm(last), image.TransformIndexToPhysicalPoint(last), atol=1e-9
    )


@COUNT
@given(shape=st.tuples(*[st.sampled_from([1, 2, 3, 7, 13, 31])] * 3), name=st.sampled_from(ALL_FORMATS))
def test_b10_any_size_down_to_one_voxel(shape, name, make):
    with make.folder() as folder:
        scan = read_scan(make.any_format(folder / name, make.ct(shape)), assume={"hu": True})
        np.testing.assert_array_equal(scan.voxels, make.ct(shape))
        assert any("a crop?" in note for note in scan.notes)
        mask = np.ones(shape, np.uint8)
        write_mask(folder / f"mask-{name}", mask, scan.geometry)
        np.testing.assert_array_equal(read_mask(folder / f"mask-{name}", scan.geometry)[0], mask)


@pytest.mark.slow
def test_b11_memory_is_bounded(tmp_path, make):
    """1100 slices: the voxels as stored and as HU, and blocks of a few megabytes."""
    shape = (1100, 512, 512)
    array = np.broadcast_to(make.ct((1, 512, 512)), shape)
    path = make.nifti(tmp_path / "scan.nii", array, make.geometry(shape, spacing_xyz=(0.7, 0.7, 0.6)))
    code = (
        "import sys, resource; from covidseg.scans.read import read_scan;"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; read_scan(sys.argv[1]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    assert int(run.stdout) * 1024 < 2.5 * array.size * 2, run.stderr


@COUNT
@given(value=st.sampled_from([-1024, -1000, 0, 40]), noise=st.booleans(), name=st.sampled_from(ALL_FORMATS))
def test_b12_nothing_in_the_scan(value, noise, name, make):
    with make.folder() as folder:
        array = np.full(SMALL, value, np.int16)
        if noise and value == -1000:
            array += np.random.default_rng(0).integers(-20, 20, SMALL, dtype=np.int16)
        scan = read_scan(make.any_format(folder / name, array))
        np.testing.assert_array_equal(scan.voxels, array)
        assert any("no body found" in note for note in scan.notes)


def test_reading_needs_no_torch():
    code = "import sys, covidseg.scans.read; assert not {'torch', 'monai'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("spacing_xyz, shape", [((0.8, 0.9, 20.0), SMALL), ((7.0, 7.0, 2.5), (3, 24, 160))])
def test_hrct_with_gaps_and_the_whole_body_can_be_vouched_for(spacing_xyz, shape, tmp_path, make, refused):
    grid = make.geometry(shape, spacing_xyz=spacing_xyz)
    path = make.nifti(tmp_path / "scan.nii", make.ct(shape), grid)
    assert "reading.assume.size=true" in refused(path, "CT")
    scan = read_scan(path, assume={"size": True})
    assert scan.geometry.spacing_zyx == pytest.approx(spacing_xyz[::-1])
    write_mask(tmp_path / "mask.nii.gz", np.ones(shape, np.uint8), scan.geometry)
    assert read_mask(tmp_path / "mask.nii.gz", scan.geometry)[0].all()
    huge = make.nifti(tmp_path / "huge.nii", make.ct(SMALL), make.geometry(SMALL, spacing_xyz=(0.8, 0.9, 60.0)))
    refused(huge, "60 mm", assume={"size": True})


def test_an_sform_of_zeros_says_nothing(tmp_path, make, refused):
    """Some writers set the code and leave the numbers: the qform counts then, or nothing does."""
    zeros = (SROW, "<12f", *[0.0] * 12)
    with_qform = make.nifti(tmp_path / "qform.nii", make.ct(SMALL), patch=[zeros])
    assert read_scan(with_qform).geometry.displacement_mm(make.geometry(SMALL)) < 1e-3
    path = make.nifti(tmp_path / "none.nii", make.ct(SMALL), patch=[zeros, (QFORM_CODE, "<h", 0)])
    assert "reading.assume.orientation=LPS" in refused(path, "nothing about orientation")
    assert read_scan(path, assume={"orientation": "LPS"}).voxels.shape == SMALL
