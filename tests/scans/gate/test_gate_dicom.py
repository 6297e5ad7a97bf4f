"""Input faults D1 to D11: folders of DICOM files that are not one whole, regular CT series."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from covidseg.scans.gate.dicom_file import DicomFile, is_lossy
from covidseg.scans.read import find_scans, read_scan
from covidseg.system.errors import BadInput, CovidSegError
from volumes import enhanced

COUNT = settings(max_examples=15, deadline=None)
SHAPE = (8, 20, 24)


def rotation(degrees_xyz):
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees_xyz).tolist())
    return np.reshape(turn.GetMatrix(), (3, 3))


def edit_file(path, change):
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path, enforce_file_format=True)


def recode(syntax):
    return lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", syntax)


def test_a_whole_series_is_what_simpleitk_reads(tmp_path, make):
    hu = make.ct(SHAPE)
    folder = make.dicom(tmp_path / "series", hu, make.geometry(SHAPE, rotation((4, 0, 0))))
    scan = read_scan(folder)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_array_equal(scan.voxels, hu)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), hu)
    last = tuple(n - 1 for n in image.GetSize())
    np.testing.assert_allclose(scan.geometry.to_mm(last), image.TransformIndexToPhysicalPoint(last), atol=1e-4)
    assert scan.notes == ("only 20 x 19 mm wide: a crop?",)


@COUNT
@given(gone=st.lists(st.integers(1, SHAPE[0] - 2), min_size=1, max_size=5, unique=True))
def test_d01_missing_slices_in_the_middle(gone, make, refused):
    with make.folder() as folder:
        make.dicom(folder / "series", make.ct(SHAPE))
        for i in gone:
            (folder / "series" / f"IM{i:04d}.dcm").unlink()
        refused(folder / "series", "slices are missing|mm apart")


def test_d01_the_gap_is_named(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    (folder / "IM0004.dcm").unlink()
    (folder / "IM0005.dcm").unlink()
    refused(folder, "slices are missing: 2 after position -92.5 mm")


def test_d01_every_second_slice_leaves_no_gap(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    for i in range(1, SHAPE[0], 2):
        (folder / f"IM{i:04d}.dcm").unlink()
    refused(folder, "InstanceNumber runs from 1 to 7 over 4 slices")
    assert read_scan(folder, assume={"partial": True}).geometry.spacing_zyx[0] == 5


def test_d01_missing_at_the_ends(tmp_path, make, refused):
    folder = make.dicom(
        tmp_path / "series", make.ct(SHAPE), edit=lambda i, ds: setattr(ds, "ImagesInAcquisition", SHAPE[0])
    )
    read_scan(folder)
    (folder / "IM0007.dcm").unlink()
    refused(folder, "holds 7 of 8 slices")
    assert read_scan(folder, assume={"partial": True}).voxels.shape[0] == 7
    begun = make.dicom(tmp_path / "begun", make.ct(SHAPE))
    (begun / "IM0000.dcm").unlink()
    assert any("begins at 2" in note for note in read_scan(begun).notes)


def test_d02_duplicates(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    (folder / "copy.dcm").write_bytes((folder / "IM0003.dcm").read_bytes())
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, make.ct(SHAPE))
    assert any("1 identical" in note for note in scan.notes)
    edit_file(folder / "copy.dcm", lambda ds: setattr(ds, "SOPInstanceUID", generate_uid()))
    assert any("1 identical" in note for note in read_scan(folder).notes)
    edit_file(folder / "copy.dcm", lambda ds: setattr(ds, "PixelData", bytes(len(ds.PixelData))))
    refused(folder, "different images of one place")


def test_d02_two_phases_under_one_uid(tmp_path, make, refused):
    uid = generate_uid()
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), uid=uid)
    make.dicom(folder, make.ct(SHAPE, seed=1), uid=uid, name="B{:04d}.dcm")
    refused(folder, "different images of one place")


def test_d03_two_series(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), uid="1.2.3")
    make.dicom(folder, make.ct((4, 20, 24), seed=1), uid="1.2.4", name="B{:04d}.dcm")
    line = refused(folder, "holds 2 CT series")
    assert "1.2.3: 8 images of 24 x 20, 2.5 mm thick" in line and "1.2.4: 4 images" in line
    np.testing.assert_array_equal(read_scan(folder, series_uid="1.2.3").voxels, make.ct(SHAPE))
    refused(folder, "holds no series 1.2.5", series_uid="1.2.5")
    refused(make.nifti(tmp_path / "scan.nii", make.ct()), "series_uid", series_uid="1.2.3")


@pytest.mark.parametrize("rule, uid", [("thinnest", "1.2.4"), ("most_slices", "1.2.3")])
def test_d03_a_rule_chooses_a_series_and_says_which(rule, uid, tmp_path, make):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), uid="1.2.3")
    thin = make.geometry((4, 20, 24), spacing_xyz=(0.8, 0.9, 1.0))
    make.dicom(folder, make.ct((4, 20, 24), seed=1), thin, uid="1.2.4", name="B{:04d}.dcm")
    scan = read_scan(folder, series=rule)
    assert scan.series_uid == uid
    assert any(f"series {uid} chosen of 2" in note and "mm thick" in note for note in scan.notes)


def test_d03_nested_folders(tmp_path, make, refused):
    make.dicom(tmp_path / "inner", make.ct(SHAPE))
    refused(tmp_path, "recursive=true")
    np.testing.assert_array_equal(read_scan(tmp_path, recursive=True).voxels, make.ct(SHAPE))
    make.dicom(tmp_path / "other", make.ct(SHAPE))
    refused(tmp_path, "holds 2 CT series", recursive=True)


OTHERS = {
    "structure set": ("1.2.840.10008.5.1.4.1.1.481.3", "1 RT structure set(s) ignored"),
    "segmentation": ("1.2.840.10008.5.1.4.1.1.66.4", "1 segmentation(s) ignored"),
    "dose report": ("1.2.840.10008.5.1.4.1.1.88.67", "1 dose report(s) ignored"),
    "magnetic resonance": ("1.2.840.10008.5.1.4.1.1.4", "1 MR image(s) ignored"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_d04_other_objects_are_counted(kind, tmp_path, make):
    sop_class, note = OTHERS[kind]
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    make.dicom(
        folder, make.ct((1, 20, 24)), name="X{:04d}.dcm", edit=lambda i, ds: setattr(ds, "SOPClassUID", sop_class)
    )
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, make.ct(SHAPE))
    assert note in scan.notes


def test_d04_localizer_in_the_same_series(tmp_path, make):
    def localize(i, ds):
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    uid = generate_uid()
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), uid=uid)
    make.dicom(folder, make.ct((2, 33, 17)), uid=uid, name="L{:04d}.dcm", edit=localize)
    (folder / "readme.txt").write_text("hello")
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, make.ct(SHAPE))
    assert {"2 localizer image(s) ignored", "1 other file(s) ignored"} <= set(scan.notes)


@COUNT
@given(degrees=st.floats(0.5, 30))
def test_d05_gantry_tilt(degrees, make, refused):
    """Slices that drift sideways are sheared; slices that are tilted as a whole are not."""
    with make.folder() as folder:
        hu, geometry = make.ct(SHAPE), make.geometry(SHAPE)

        def drift(i, ds):
            x, y, z = map(float, ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x, f"{y + i * 2.5 * np.tan(np.radians(degrees)):.6f}", z]

        refused(make.dicom(folder / "drift", hu, geometry, edit=drift), "gantry tilt")
        tilted = make.geometry(SHAPE, rotation((degrees, 0, 0)))
        scan = read_scan(make.dicom(folder / "tilted", hu, tilted))
        np.testing.assert_array_equal(scan.voxels, hu)
        assert scan.geometry.displacement_mm(tilted) < 1e-3


def drifting(hu, grid, mm_xy):
    """`edit` for `Make.dicom`: each slice lies further along the rows and columns than the one before."""

    def edit(i, ds):
        place = grid.to_mm([0, 0, i]) + np.reshape(grid.direction, (3, 3))[:, :2] @ np.multiply(mm_xy, i)
        ds.ImagePositionPatient = [f"{mm:.8g}" for mm in place]

    return edit


def test_d05_a_tilted_gantry_is_resampled_on_request(tmp_path, make, refused):
    """By whole pixels: every voxel is found again, exactly, where its slice said it was."""
    hu, grid = make.ct(SHAPE), make.geometry(SHAPE, rotation((0, 0, 20)))
    folder = make.dicom(tmp_path / "tilted", hu, grid, edit=drifting(hu, grid, (0.8, -1.8)))
    refused(folder, r"gantry tilt\) -> resample it to right angles, or reading.assume.tilt=true to have that done")
    scan = read_scan(folder, assume={"tilt": True})
    assert scan.voxels.shape == (8, 20 + 14, 24 + 7)
    tilt = np.degrees(np.arctan(np.hypot(0.8, 1.8) / grid.spacing_zyx[0]))
    assert any(f"gantry tilt of {tilt:.1f} degrees" in note for note in scan.notes) and scan.slices == ()
    for z, image in enumerate(hu):
        first = grid.to_mm([0, 0, z]) + np.reshape(grid.direction, (3, 3))[:, :2] @ np.multiply((0.8, -1.8), z)
        index = np.linalg.solve(scan.geometry.step_mm, first - scan.geometry.origin_xyz)
        x, y, at = np.rint(index).astype(int)
        np.testing.assert_allclose(index, (x, y, at), atol=1e-3)
        here = scan.voxels[at].copy()
        np.testing.assert_allclose(here[y : y + 20, x : x + 24], image, atol=1)
        here[y : y + 20, x : x + 24] = -1024
        assert (here == -1024).all()


def test_d05_a_tilt_between_pixels_is_what_simpleitk_resamples(tmp_path, make):
    """Each slice alone, moved by SimpleITK's linear interpolation in millimetres."""
    hu, grid = make.ct(SHAPE), make.geometry(SHAPE)
    folder = make.dicom(tmp_path / "tilted", hu, grid, edit=drifting(hu, grid, (0.0, 0.37)))
    scan = read_scan(folder, assume={"tilt": True})
    for z, image in enumerate(hu):
        slab = sitk.GetImageFromArray(np.pad(image.astype(np.float32), 1, constant_values=-1024)[None])
        slab.SetSpacing((*grid.spacing_zyx[:0:-1], 1.0))
        slab.SetOrigin(grid.to_mm([-1, -1, z]) * (1, 1, 0) + np.array((0, 0.37 * z, 0)))
        wanted = sitk.GetImageFromArray(np.zeros((1, *scan.voxels.shape[1:]), np.float32))
        wanted.SetSpacing(slab.GetSpacing())
        wanted.SetOrigin((*scan.geometry.origin_xyz[:2], 0.0))
        expected = sitk.GetArrayFromImage(sitk.Resample(slab, wanted, sitk.Transform(), sitk.sitkLinear, -9999))[0]
        inside = expected > -9000
        assert inside.sum() >= 20 * 24
        np.testing.assert_allclose(scan.voxels[z][inside], expected[inside], atol=1)


def test_d05_an_uneven_shift_is_no_tilt(tmp_path, make, refused):
    hu, grid = make.ct(SHAPE), make.geometry(SHAPE)

    def jump(i, ds):
        ds.ImagePositionPatient[0] = float(ds.ImagePositionPatient[0]) + (3.0 if i > 4 else 0.0)

    refused(make.dicom(tmp_path / "jump", hu, grid, edit=jump), "unevenly", assume={"tilt": True})


@COUNT
@given(index=st.integers(1, SHAPE[0] - 2), mm=st.sampled_from([-1.0, -0.3, 0.3, 1.0]))
def test_d06_irregular_spacing(index, mm, make, refused):
    def move(i, ds):
        if i == index:
            x, y, z = map(float, ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x, y, z + mm]

    with make.folder() as folder:
        refused(make.dicom(folder / "series", make.ct(SHAPE), edit=move), "mm apart|missing")


def test_d06_rounded_positions_are_regular(tmp_path, make):
    def rounded(i, ds):
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], f"{float(ds.ImagePositionPatient[2]):.1f}"]

    geometry = make.geometry(SHAPE, spacing_xyz=(0.8, 0.8, 0.625))
    scan = read_scan(make.dicom(tmp_path / "series", make.ct(SHAPE), geometry, edit=rounded))
    assert scan.geometry.spacing_zyx[0] == pytest.approx(0.625, abs=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"Rows": 18, "PixelData": bytes(18 * 24 * 2)},
        {"PixelSpacing": [0.8, 0.8]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.9962, 0.0872]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_d06_one_slice_is_different(change, tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    edit_file(folder / "IM0005.dcm", lambda ds: [setattr(ds, name, value) for name, value in change.items()])
    assert "IM0005.dcm" in refused(folder, f"differs from .* in {next(iter(change))}")


REQUIRED = [
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "Modality",
]
REQUIRED += ["Rows", "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "SeriesInstanceUID"]


@pytest.mark.parametrize("name", REQUIRED)
def test_d07_missing_attribute(name, tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    edit_file(folder / "IM0005.dcm", lambda ds: delattr(ds, name))
    refused(folder, f"lacks the attribute {name}")


WRONG_KIND = {
    "Modality": ({"Modality": "MR"}, "Modality is not CT"),
    "inverted": ({"PhotometricInterpretation": "MONOCHROME1"}, "is not MONOCHROME2"),
    "frames": ({"NumberOfFrames": 2}, "several frames"),
    "enhanced": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "lacks the attribute NumberOfFrames"),
    "not a number": ({"PixelSpacing": None}, "lacks the attribute PixelSpacing"),
    "one number": ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
}


@pytest.mark.parametrize("how", WRONG_KIND)
def test_d07_other_kinds_of_image(how, tmp_path, make, refused):
    change, says = WRONG_KIND[how]
    refused(make.dicom(tmp_path / "series", make.ct(SHAPE), edit=lambda i, ds: ds.update(_elements(change))), says)


def _elements(change):
    ds = pydicom.Dataset()
    for name, value in change.items():
        setattr(ds, name, value)
    return ds


def test_d07_magnetic_resonance_only(tmp_path, make, refused):
    folder = make.dicom(
        tmp_path / "mr", make.ct(SHAPE), edit=lambda i, ds: setattr(ds, "SOPClassUID", OTHERS["magnetic resonance"][0])
    )
    refused(folder, "holds no CT series, only 8 MR image")


def test_d07_without_rescale_tags_but_declared_as_ct(tmp_path, make, refused):
    """Slope 1 and intercept 0 on stored values: the histogram shows it."""
    refused(
        make.dicom(tmp_path / "series", make.ct(SHAPE), edit=lambda i, ds: setattr(ds, "RescaleIntercept", "0")),
        "not Hounsfield units",
    )


@pytest.mark.parametrize("padding, signed", [(-2000, True), (63536, False)])
def test_d07_padding_becomes_air(padding, signed, tmp_path, make):
    """Declared padding, far below the range or, read as unsigned, far above it."""
    hu = make.ct(SHAPE)

    def pad(i, ds):
        stored = hu[i].astype(np.int32) + 1024
        stored[:3] = padding
        ds.PixelRepresentation = int(signed)
        ds.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
        ds.add_new("PixelPaddingValue", "SS" if signed else "US", padding)

    voxels = read_scan(make.dicom(tmp_path / "series", hu, edit=pad)).voxels
    assert (voxels[:, :3] == -1024).all()
    np.testing.assert_array_equal(voxels[:, 3:], hu[:, 3:])


@COUNT
@given(data=st.data())
def test_d08_scale_of_its_own_in_each_slice(data, make):
    slopes = data.draw(st.lists(st.sampled_from([1.0, 0.5, 0.9999, 2.0]), min_size=SHAPE[0], max_size=SHAPE[0]))
    offsets = data.draw(st.lists(st.sampled_from([-1024.0, -1000.5, -2000.0]), min_size=SHAPE[0], max_size=SHAPE[0]))
    hu = make.ct(SHAPE)
    stored = [np.rint((hu[i] - offsets[i]) / slopes[i]).clip(0, 65535).astype(np.uint16) for i in range(SHAPE[0])]

    def scale(i, ds):
        ds.RescaleSlope, ds.RescaleIntercept, ds.PixelData = slopes[i], offsets[i], stored[i].tobytes()

    with make.folder() as folder:
        voxels = read_scan(make.dicom(folder / "series", hu, edit=scale)).voxels
    for i in range(SHAPE[0]):
        expected = np.clip(stored[i] * slopes[i] + offsets[i], -1024, 3071)
        assert np.abs(voxels[i] - expected).max() <= 0.5 + 1e-3


@COUNT
@given(data=st.data(), index=st.sampled_from([0, 3, SHAPE[0] - 1]))
def test_d09_truncated_at_any_byte_of_any_file(data, index, make, refused):
    with make.folder() as folder:
        series = make.dicom(folder / "series", make.ct(SHAPE))
        path = series / f"IM{index:04d}.dcm"
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert f"IM{index:04d}.dcm" in refused(series, "unreadable|empty|lacks")


def test_two_scans_with_an_offset_between_them_are_not_missing_slices(tmp_path, make, refused):
    def move(i, ds):
        if i >= 5:
            x, y, z = map(float, ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x, y, z + 1.5]

    line = refused(make.dicom(tmp_path / "series", make.ct(SHAPE), edit=move), "no whole number of them is missing")
    assert "slices lie 2.5 mm apart, but 4 mm after position" in line


def test_d09_foreign_content_under_a_dicom_name(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    (folder / "IM0099").write_bytes(b"not dicom" * 100)
    assert "IM0099" in refused(folder, "unreadable")


def test_what_a_patients_cd_holds_beside_the_slices_is_passed_over_and_counted(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    others = {"VIEWER.EXE": b"MZ" + b"\0" * 200, "LOCKFILE": b"", "LICENSE": b"text", "AUTORUN.INF": b"[autorun]"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, make.ct(SHAPE))
    assert "3 file(s) that are no DICOM ignored" in scan.notes and "1 other file(s) ignored" in scan.notes
    (folder / "IM0100.dcm").write_bytes(b"")
    assert "IM0100.dcm" in refused(folder, "empty.*called like a slice")
    (folder / "IM0100.dcm").unlink()
    (folder / "case.nii.gz").write_bytes(b"x")
    assert "case.nii.gz" in refused(folder, "a volume among DICOM slices")


@pytest.mark.parametrize("tag, kind", [(0x00280120, "SS"), (0x00180050, "DS"), (0x00201002, "IS")])
def test_an_optional_attribute_without_a_value_is_an_absent_one(tag, kind, tmp_path, make):
    blank = make.dicom(tmp_path / "blank", make.ct(SHAPE), edit=lambda i, ds: ds.add_new(tag, kind, None))
    assert np.array_equal(read_scan(blank).voxels, make.ct(SHAPE))


@COUNT
@given(seed=st.integers(0, 1000), reverse=st.booleans())
def test_d10_names_and_numbers_do_not_order_the_slices(seed, reverse, make):
    order = list(range(SHAPE[0]))
    random.Random(seed).shuffle(order)
    with make.folder() as folder:
        series = make.dicom(
            folder / "series",
            make.ct(SHAPE),
            edit=lambda i, ds: setattr(ds, "InstanceNumber", SHAPE[0] - i if reverse else i + 1),
        )
        for i, number in enumerate(order):
            os.rename(series / f"IM{i:04d}.dcm", series / f"{number}")
        scan = read_scan(series)
        np.testing.assert_array_equal(scan.voxels, make.ct(SHAPE))
        assert scan.geometry.displacement_mm(make.geometry(SHAPE)) < 1e-6


HOSTILE = ["<script>alert(1)</script>", "../../etc/passwd", "two\nlines", "=cmd()"]


@pytest.mark.parametrize("name", HOSTILE)
def test_d11_the_patient_never_shows(name, tmp_path, make):
    """In no note and in no message of any refusal."""

    def dress(i, ds):
        for attribute in ("PatientName", "PatientID", "SeriesDescription", "StudyDescription", "InstitutionName"):
            ds.add_new(pydicom.datadict.tag_for_keyword(attribute), "LO", f"Canary{name}")

    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), edit=dress)
    assert "Canary" not in repr(read_scan(folder))
    faults = [
        lambda: (folder / "IM0003.dcm").unlink(),
        lambda: edit_file(folder / "IM0004.dcm", lambda ds: setattr(ds, "Modality", "MR")),
        lambda: make.dicom(folder, make.ct(SHAPE), edit=dress, name="B{:04d}.dcm"),
        lambda: (folder / "IM0005.dcm").write_bytes((folder / "IM0005.dcm").read_bytes()[:600]),
    ]
    for fault in faults:
        fault()
        with pytest.raises(BadInput) as caught:
            read_scan(folder)
        assert "Canary" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("signed", [False, True])
def test_transfer_syntaxes(syntax, signed, tmp_path, make):
    hu = make.ct(SHAPE)

    def encode(ds):
        if syntax == RLELossless:
            ds.compress(RLELossless)
        elif syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    def sign(i, ds):
        if signed:
            ds.PixelRepresentation, ds.RescaleIntercept, ds.PixelData = 1, "0", hu[i].astype(np.int16).tobytes()

    np.testing.assert_array_equal(read_scan(make.dicom(tmp_path / "series", hu, edit=sign, after=encode)).voxels, hu)


def test_twelve_bits_with_something_above_them(tmp_path, make):
    """Bits beyond BitsStored may hold overlays; the sign is that of the stored bits."""
    hu = make.ct(SHAPE)

    def pack(i, ds):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept = 12, 11, 1, "0"
        ds.PixelData = ((hu[i].astype(np.int32) & 0x0FFF) | 0x5000).astype(np.uint16).tobytes()

    np.testing.assert_array_equal(read_scan(make.dicom(tmp_path / "series", hu, edit=pack)).voxels, hu)


def test_truncated_compressed_voxels(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), after=lambda ds: ds.compress(RLELossless))
    read_scan(folder)
    path = folder / "IM0002.dcm"
    path.write_bytes(path.read_bytes()[:-9])
    assert "IM0002.dcm" in refused(folder, "unreadable")


def test_sequences_of_every_kind_are_stepped_over(tmp_path, make):
    def nest(i, ds):
        inner = pydicom.Dataset()
        inner.PixelSpacing = [9, 9]  # inside a sequence it is not this image's
        inner.ReferencedImageSequence = [pydicom.Dataset()]
        inner["ReferencedImageSequence"].is_undefined_length = i % 2 == 0
        ds.ReferencedStudySequence = [inner, inner]
        ds["ReferencedStudySequence"].is_undefined_length = i % 2 == 0
        inner.is_undefined_length_sequence_item = i % 4 == 0

    hu = make.ct(SHAPE)
    np.testing.assert_array_equal(read_scan(make.dicom(tmp_path / "explicit", hu, edit=nest)).voxels, hu)
    implicit = make.dicom(tmp_path / "implicit", hu, edit=nest, after=recode(ImplicitVRLittleEndian))
    np.testing.assert_array_equal(read_scan(implicit).voxels, hu)


def test_deflated_files_are_read_and_a_broken_one_refused(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), after=recode(DeflatedExplicitVRLittleEndian))
    np.testing.assert_array_equal(read_scan(folder).voxels, make.ct(SHAPE))
    whole = (folder / "IM0002.dcm").read_bytes()
    for length in range(300, len(whole), len(whole) // 7):
        (folder / "IM0002.dcm").write_bytes(whole[:length])
        assert "IM0002.dcm" in refused(folder, "breaks off|no voxels|lacks|holds .* bytes")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("left", ["meta", "data"])
def test_files_without_a_preamble_are_read(tmp_path, make, refused, syntax, left):
    """As old archives keep them: from the meta group on, or from the first attribute."""
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), after=recode(syntax), name="IM{:04d}")
    for path in folder.iterdir():
        content = path.read_bytes()
        start = content.index(b"\x08\x00\x08\x00") if left == "data" else 132  # ImageType comes first
        path.write_bytes(content[start:])
    np.testing.assert_array_equal(read_scan(folder).voxels, make.ct(SHAPE))
    assert [source.id for source in find_scans(tmp_path)] == ["series"]
    path = folder / "IM0002"
    path.write_bytes(path.read_bytes()[:-9])
    assert "IM0002" in refused(folder, "breaks off|bytes of voxels")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stored", [12, 13, 15])
def test_left_justified_voxels_are_shifted_back(tmp_path, make, stored, signed):
    """HighBit says where the stored bits end; the free ones below may hold anything."""
    hu = np.clip(make.ct(SHAPE), -1024, 2**11 - 1)
    values = hu if signed else hu + 1024
    noise = np.random.default_rng(0).integers(0, 1 << (16 - stored), hu.shape)

    def pack(i, ds):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = stored, 15, int(signed)
        ds.RescaleIntercept = "0" if signed else "-1024"
        ds.PixelData = ((values[i].astype(np.int64) << (16 - stored) | noise[i]) & 0xFFFF).astype(np.uint16).tobytes()

    np.testing.assert_array_equal(read_scan(make.dicom(tmp_path / "series", hu, edit=pack)).voxels, hu)


def test_a_high_bit_that_cannot_be_is_refused(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct(SHAPE), edit=lambda i, ds: setattr(ds, "HighBit", 16))
    refused(folder, "HighBit")


def test_a_few_bytes_behind_the_last_row_are_passed_over(tmp_path, make, refused):
    def more(count):
        return lambda i, ds: setattr(ds, "PixelData", ds.PixelData + bytes(count))

    np.testing.assert_array_equal(
        read_scan(make.dicom(tmp_path / "few", make.ct(SHAPE), edit=more(6))).voxels, make.ct(SHAPE)
    )
    refused(make.dicom(tmp_path / "row", make.ct(SHAPE), edit=more(2 * SHAPE[2])), "bytes of voxels")


@pytest.mark.parametrize("syntax, offset", [(ExplicitVRLittleEndian, 1), (RLELossless, 0)])
def test_an_enhanced_ct_is_its_frames_in_order(tmp_path, make, syntax, offset):
    """One file with all slices, out of order, each with a rescaling of its own."""
    hu, grid = make.ct(SHAPE), make.geometry(SHAPE)
    order = np.random.default_rng(0).permutation(SHAPE[0])
    folder = enhanced(tmp_path / "series/one.dcm", hu, grid, syntax, order, offset=offset)
    scan = read_scan(folder, assume={"partial": True})
    np.testing.assert_array_equal(scan.voxels, hu)
    assert scan.geometry.displacement_mm(grid) < 1e-3 and scan.thickness_mm == grid.spacing_zyx[0]
    assert "Canary" not in str(scan.notes)


def test_compressed_frames_of_different_scales_are_refused(tmp_path, make, refused):
    """The decoder has one scale for all of them."""
    folder = enhanced(tmp_path / "series/one.dcm", make.ct(SHAPE), make.geometry(SHAPE), RLELossless)
    refused(folder, "different rescalings")


def test_an_enhanced_ct_whose_groups_do_not_fit_its_frames_is_refused(tmp_path, make, refused):
    hu, grid = make.ct(SHAPE), make.geometry(SHAPE)
    spoils = {
        "functional groups for": lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(),
        "shift sideways": lambda ds: setattr(
            ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0], "ImagePositionPatient", [0, 0, 500]
        ),
        "lacks the attribute ImagePositionPatient": lambda ds: delattr(
            ds.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"
        ),
        "bytes of voxels": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-200]),
    }
    for number, (message, spoil) in enumerate(spoils.items()):
        refused(enhanced(tmp_path / f"s{number}/one.dcm", hu, grid, spoil=spoil), message)


def test_one_slice_takes_its_thickness(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct((1, 40, 48)))
    scan = read_scan(folder)
    assert scan.geometry.spacing_zyx[0] == 2.5 and any("single slice" in note for note in scan.notes)
    edit_file(folder / "IM0000.dcm", lambda ds: delattr(ds, "SliceThickness"))
    refused(folder, "lacks the attribute SliceThickness")


@pytest.mark.parametrize(("written", "known"), [("1.25", 1.25), ("0", None), (None, None), ("2.5", 2.5)])
def test_the_thickness_of_slices_is_known_where_the_header_says_it(tmp_path, make, written, known):
    """Slices thinner than they lie apart leave gaps; that is no reason to refuse them, and a figure to be doubted."""

    def edit(index, ds):
        if written is None:
            del ds.SliceThickness
        else:
            ds.SliceThickness = written

    scan = read_scan(make.dicom(tmp_path / "series", make.ct((4, 40, 48)), edit=edit))
    assert scan.thickness_mm == known and scan.geometry.spacing_zyx[0] == 2.5


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a16_mutated_dicom_header(data, make):
    """An error of one line, or the shape that the header says; never a crash, a hang or another exception."""
    with make.folder() as folder:
        series = make.dicom(folder / "series", make.ct((1, 20, 24)))
        raw = bytearray((series / "IM0000.dcm").read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(132, len(raw) - 20 * 24 * 2 - 1))] = data.draw(st.integers(0, 255))
        (series / "IM0000.dcm").write_bytes(raw)
        try:
            assert read_scan(series, assume={"hu": True}).voxels.shape == (1, 20, 24)
        except CovidSegError as error:
            assert "\n" not in str(error)


def test_endless_nesting_is_an_error(tmp_path, make, refused):
    folder = make.dicom(tmp_path / "series", make.ct((1, 20, 24)))
    path = folder / "IM0000.dcm"
    raw = path.read_bytes()
    at = raw.index(b"\x08\x00\x08\x00CS")  # before ImageType
    level = struct.pack("<HH2sHI", 8, 0x1110, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(raw[:at] + level * 5000 + raw[at:])
    refused(folder, "too deeply")


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_d09_a_slice_without_voxels(name, tmp_path, make, refused):
    refused(make.dicom(tmp_path / "all", make.ct(), edit=lambda i, ds: setattr(ds, name, 0)), f"{name} is 0")
    one = make.dicom(tmp_path / "one", make.ct(), edit=lambda i, ds: setattr(ds, name, 0 if i == 3 else ds[name].value))
    refused(one, rf"{name} is 0")


@pytest.mark.parametrize("marked", [8, 3, 0])
def test_lossy_compression_is_noted(tmp_path, make, marked):
    """By the attribute that stays when a slice is unpacked again."""

    def edit(i, ds):
        ds.LossyImageCompression = "01" if i < marked else "00"

    scan = read_scan(make.dicom(tmp_path / "series", make.ct(SHAPE), edit=edit))
    noted = [note for note in scan.notes if "lossy" in note]
    assert noted == (
        [f"{marked} of 8 slices went through lossy compression: their HU are not the scanner's"] * bool(marked)
    )


def test_a_coding_that_is_lossy_is_noted_where_the_attribute_is_missing():
    file = DicomFile(Path("x"), {"TransferSyntaxUID": "1.2.840.10008.1.2.4.81"}, None)
    assert is_lossy(file) and not is_lossy(DicomFile(Path("x"), {"TransferSyntaxUID": "1.2.840.10008.1.2.4.80"}, None))
