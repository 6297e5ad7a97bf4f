"""Masks as DICOM objects: SEG and RTSTRUCT in, SEG out, against highdicom, pydicom, SimpleITK and matplotlib."""

import itertools
import random
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Polygon
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from covidseg.scans.gate.rtstruct import filled
from covidseg.scans.read import read_mask, read_scan
from covidseg.scans.write import write_mask
from covidseg.system.errors import BadInput, CovidSegError
from volumes import enhanced

SHAPE = (7, 18, 24)
NAMES = {"lung": 1, "lesion": 2}


def drawn(shape=SHAPE):
    """(lung, lesion): boolean, without any symmetry, the lesion partly inside the lung."""
    lung, lesion = np.zeros((2, *shape), bool)
    lung[1:5, 4:16, 3:9] = True
    lung[2, 5, 9:14] = True
    lesion[2:4, 8:12, 7:11] = True
    return lung, lesion


def series(tmp_path, make, direction=None, spacing=(0.7, 0.9, 2.5), **options):
    geometry = make.geometry(SHAPE, direction, spacing_xyz=spacing)
    return read_scan(make.dicom(tmp_path / "scan", make.ct(SHAPE), geometry, **options))


def written_by_highdicom(path, scan, masks, kind="BINARY", syntax=ExplicitVRLittleEndian, keep=slice(None)):
    """A SEG of named masks, whose pixels may be probabilities."""
    described = [
        highdicom.seg.SegmentDescription(
            number, name, codes.SCT.Tissue, codes.SCT.Lung, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(masks, start=1)
    ]
    stacked = np.stack(list(masks.values()), axis=-1)
    if kind == "LABELMAP":
        stacked = (stacked * np.arange(1, len(masks) + 1)).max(axis=-1)
    headers = [pydicom.dcmread(file) for file, _ in scan.slices]
    for header in headers:
        header.PatientSex = header.AccessionNumber = header.StudyID = header.StudyDate = header.StudyTime = ""
        header.ReferringPhysicianName = ""
    seg = highdicom.seg.Segmentation(
        headers[keep], stacked[keep].astype(np.float32 if kind == "FRACTIONAL" else np.uint8), kind, described,
        highdicom.UID(), 1, highdicom.UID(), 1, "a", "b", "c", "d", transfer_syntax_uid=syntax,
    )  # fmt: skip
    seg.save_as(path)
    return path


def structure_set(path, regions, kind="CLOSED_PLANAR"):
    """An RTSTRUCT of {name: [(n, 3) LPS mm]}, as treatment planning writes it."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientName = "RTSTRUCT", "Canary^Patient"
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        region, drawing = pydicom.Dataset(), pydicom.Dataset()
        region.ROINumber, region.ROIName = number, name
        drawing.ReferencedROINumber, drawing.ContourSequence = number, []
        for points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{mm:.6f}" for mm in np.ravel(points)]
            drawing.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(region)
        ds.ROIContourSequence.append(drawing)
    ds.save_as(path, enforce_file_format=True)
    return path


def contours_of(mask, geometry):
    """Outlines of every row of voxels, in mm: a comb of boxes, which any mask can be drawn with."""
    boxes = []
    for z, y in np.argwhere(mask.any(axis=2)):
        columns = np.flatnonzero(mask[z, y])
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            left, right = run[0] - 0.4, run[-1] + 0.4
            corners = [(left, y - 0.4, z), (right, y - 0.4, z), (right, y + 0.4, z), (left, y + 0.4, z)]
            boxes.append(geometry.to_mm(np.array(corners)))
    return boxes


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_of_a_dicom_seg_are_told_by_name(tmp_path, make, kind):
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    lung &= ~lesion if kind == "LABELMAP" else True
    path = written_by_highdicom(tmp_path / "a.dcm", scan, {"Lesion": lesion, "LUNG": lung}, kind)
    mask, notes = read_mask(path, scan.geometry, labels=NAMES)
    np.testing.assert_array_equal(mask, np.where(lesion, 2, lung))
    assert notes == ("segments: Lesion, LUNG",)


def test_a_compressed_dicom_seg_of_a_part_of_the_slices(tmp_path, make):
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    keep = slice(2, 6)
    path = written_by_highdicom(
        tmp_path / "a.dcm", scan, {"x": lesion.astype(float)}, "FRACTIONAL", RLELossless, keep=keep
    )
    np.testing.assert_array_equal(read_mask(path, scan.geometry)[0], lesion)
    assert lung.any()


def test_the_mask_may_lie_in_a_folder_of_its_own_and_its_scan_be_nifti(tmp_path, make):
    scan, (_, lesion) = series(tmp_path, make), drawn()
    (tmp_path / "mask" / "SER1").mkdir(parents=True)
    written_by_highdicom(tmp_path / "mask" / "SER1" / "IM0", scan, {"tumour": lesion})
    flipped = np.ascontiguousarray(scan.voxels[:, ::-1])
    origin = scan.geometry.to_mm([0, SHAPE[1] - 1, 0])
    other = make.geometry(SHAPE, np.diag([1, -1, 1]), spacing_xyz=(0.7, 0.9, 2.5), origin_xyz=origin)
    grid = read_scan(make.nifti(tmp_path / "scan.nii", flipped, other)).geometry
    np.testing.assert_array_equal(read_mask(tmp_path / "mask", grid)[0], lesion[:, ::-1])
    written_by_highdicom(tmp_path / "mask" / "second.dcm", scan, {"tumour": lesion})
    with pytest.raises(BadInput, match=r"2 DICOM SEG or RTSTRUCT files: IM0, second.dcm"):
        read_mask(tmp_path / "mask", grid)


def test_a_dicom_seg_that_cannot_be_taken_is_refused(tmp_path, make, refused):
    scan, (lung, lesion) = series(tmp_path, make), drawn()

    def read(path, grid=scan.geometry, **options):
        return read_mask(path, grid, **options)

    path = written_by_highdicom(tmp_path / "a.dcm", scan, {"Infection": lesion, "Lung": lung})
    refused(path, "segments Infection, Lung, and Infection has no meaning", read, labels=NAMES)
    beside = make.geometry(SHAPE, spacing_xyz=(0.7, 0.9, 2.5), origin_xyz=(-19.8, -30, -100))
    refused(path, "frame 1 does not lie on the voxels", lambda path, **o: read(path, beside, **o),
            labels={"Infection": 2, "Lung": 1})  # fmt: skip
    half = make.geometry((3, *SHAPE[1:]), spacing_xyz=(0.7, 0.9, 2.5))
    refused(path, "or outside it", lambda path, **o: read(path, half, **o), labels={"Infection": 2, "Lung": 1})
    soft = written_by_highdicom(tmp_path / "soft.dcm", scan, {"x": lesion * 0.5}, "FRACTIONAL")
    refused(soft, "is fractional", read)
    scan_file = next((tmp_path / "scan").iterdir())
    refused(scan_file, "is no DICOM SEG or RTSTRUCT", read)
    (tmp_path / "text.dcm").write_text("not DICOM at all")
    refused(tmp_path / "text.dcm", "is no DICOM file", read)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_dicom_mask_that_breaks_off_is_refused(tmp_path, make, refused, share):
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    seg = written_by_highdicom(tmp_path / "a.dcm", scan, {"x": lesion})
    contours = structure_set(tmp_path / "rt.dcm", {"x": contours_of(lung, scan.geometry)})
    for path in (seg, contours):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, "breaks off|bytes of voxels|no voxels", lambda path: read_mask(path, scan.geometry))


def test_filling_agrees_with_matplotlib():
    """No point of these polygons lies on a pixel's centre, where the two may differ."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :50]
    centres = np.c_[rows.ravel(), columns.ravel()]
    for corners in (3, 4, 7, 30):
        polygons = [rng.uniform((-3, -3), (43, 53), (corners, 2)) for _ in range(3)]
        expected = np.zeros((40, 50), bool)
        for polygon in polygons:
            inside = np.zeros(len(centres), bool)
            # non-zero winding in matplotlib, even-odd here: compare triangles of a fan instead of a whole polygon
            for first, second in itertools.pairwise(range(1, corners)):
                inside ^= Polygon(polygon[[0, first, second]]).contains_points(centres)
            expected ^= inside.reshape(rows.shape)
        np.testing.assert_array_equal(filled(polygons, (40, 50)), expected)


def test_a_centre_on_an_edge_counts_once():
    """Two boxes side by side whose common edge runs through centres cover each pixel once."""
    box = np.array([(1, 1), (1, 4), (5, 4), (5, 1)], float)
    both = filled([box], (8, 10)).astype(int) + filled([box + np.array((0, 3))], (8, 10))
    assert both.sum() == 2 * 4 * 3
    assert both.max() == 1


def test_regions_of_an_rtstruct_are_filled_where_they_lie(tmp_path, make):
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    regions = {"Lung": contours_of(lung, scan.geometry), "LESION": contours_of(lesion, scan.geometry), "heart": []}
    regions["cord"] = contours_of(lung, scan.geometry)[:1]
    path = structure_set(tmp_path / "rt.dcm", regions)
    mask, notes = read_mask(path, scan.geometry, labels=NAMES)
    np.testing.assert_array_equal(mask, np.where(lesion, 2, lung))
    assert notes == ("regions: Lung, LESION; left out: cord",)


def test_a_contour_inside_another_is_a_hole(tmp_path, make):
    scan = series(tmp_path, make)
    corner = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)])
    rings = [scan.geometry.to_mm(corner * (half, half, 1) + (10, 8, 3)) for half in (5.5, 2.5)]
    mask, _ = read_mask(structure_set(tmp_path / "rt.dcm", {"x": rings}), scan.geometry)
    assert mask[3].sum() == 11 * 11 - 5 * 5
    assert mask.sum() == mask[3].sum()


@pytest.mark.parametrize("shift, pattern", [((0, 0, 0.4), "slices off the slices"), ((0, 0, 9), "beyond its scan"),
                                            ((30, 0, 0), "beyond its scan")])  # fmt: skip
def test_an_rtstruct_of_another_scan_is_refused(tmp_path, make, refused, shift, pattern):
    scan, (lung, _) = series(tmp_path, make), drawn()
    moved = [points + np.array(shift) * (0.7, 0.9, 2.5) for points in contours_of(lung, scan.geometry)]
    refused(structure_set(tmp_path / "rt.dcm", {"x": moved}), pattern, lambda path: read_mask(path, scan.geometry))


def test_other_regions_are_refused(tmp_path, make, refused):
    scan, (lung, _) = series(tmp_path, make), drawn()
    comb = contours_of(lung, scan.geometry)

    def read(path):
        return read_mask(path, scan.geometry, labels=NAMES, mapped_by="'+data.source.lesions={VALUE: lesion}'")

    refused(structure_set(tmp_path / "rt.dcm", {"GTV-1": comb, "cord": comb}), "regions GTV-1, cord", read)
    refused(structure_set(tmp_path / "rt.dcm", {"lung": comb}, kind="POINT"), "region lung: is of POINT", read)
    refused(structure_set(tmp_path / "rt.dcm", {"lung": []}), "no region with a contour", read)
    skipping = [points for points in comb if round((points[0, 2] + 100) / 2.5) % 2 == 0]
    skipping += [points + np.array((0, 0, 5.0)) for points in skipping if points[0, 2] > -92]
    refused(structure_set(tmp_path / "rt.dcm", {"lung": skipping}), "every 2th slice", read)


ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def stack(tmp_path, make, direction):
    """A series whose rows, columns and slices run along the columns of `direction`, right- or left-handed."""
    hu, geometry = make.ct(SHAPE), make.geometry(SHAPE, direction, spacing_xyz=(0.7, 0.9, 2.5))
    return read_scan(make.dicom(tmp_path / "scan", hu, geometry))


@pytest.mark.parametrize("number", range(48))
def test_dicom_seg_out_is_voxel_equal_in_48_orientations(tmp_path, make, number):
    """pydicom alone, and SimpleITK's GDCM, read what highdicom wrote: voxels, and where they lie."""
    scan, (_, lesion) = stack(tmp_path, make, ORIENTATIONS[number]), drawn()
    lesion = lesion if np.linalg.det(ORIENTATIONS[number]) > 0 else lesion[::-1]  # slices are put along the normal
    write_mask(tmp_path / "m.dcm", lesion.astype(np.uint8), scan.geometry, segments={1: "lesion"}, slices=scan.slices)
    seg = pydicom.dcmread(tmp_path / "m.dcm")
    headers = {ds.SOPInstanceUID: ds for ds in (pydicom.dcmread(file) for file, _ in scan.slices)}
    first = next(iter(headers.values()))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == first[name].value
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    where = {tuple(np.round(scan.geometry.to_mm([0, 0, z]), 3)): z for z in range(SHAPE[0])}
    back = np.zeros(SHAPE, bool)
    planes = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.dcm"))).reshape(-1, *SHAPE[1:])
    np.testing.assert_array_equal(planes > 0, seg.pixel_array.reshape(planes.shape) > 0)
    for plane, group in zip(planes, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = tuple(np.round(np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), 3))
        back[where[position]] = plane > 0
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(np.array(headers[source].ImagePositionPatient, float), position, atol=1e-3)
    np.testing.assert_array_equal(back, lesion)
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert [float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing] == [0.9, 0.7]
    segment = seg.SegmentSequence[0]
    assert (segment.SegmentLabel, segment.SegmentedPropertyTypeCodeSequence[0].CodeValue) == ("lesion", "52988006")
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Lung"


@pytest.mark.parametrize("name", ["m.dcm", "m.seg.nrrd"])
def test_named_masks_come_back_by_name_empty_ones_too(tmp_path, make, name):
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    for mask in (np.where(lesion, 2, lung).astype(np.uint8), np.zeros(SHAPE, np.uint8)):
        named = {1: "lung", 2: "lesion"}
        write_mask(tmp_path / name, mask, scan.geometry, segments=named, slices=scan.slices, overwrite=True)
        np.testing.assert_array_equal(read_mask(tmp_path / name, scan.geometry, labels=NAMES)[0], mask)


def test_slicer_finds_names_colours_and_values(tmp_path, make):
    scan, (lung, _) = series(tmp_path, make), drawn()
    write_mask(tmp_path / "m.seg.nrrd", lung.astype(np.uint8), scan.geometry, segments={1: "lung"})
    image = sitk.ReadImage(str(tmp_path / "m.seg.nrrd"))
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert (header["Segment0_Name"], header["Segment0_LabelValue"], header["Segment0_Layer"]) == ("lung", "1", "0")
    assert np.allclose(np.array(header["Segment0_Color"].split(), float) * 255, (143, 184, 222), atol=0.01)
    assert header["Segment0_Extent"] == "0 23 0 17 0 6"
    assert "Canary" not in (tmp_path / "m.seg.nrrd").read_bytes().decode("latin-1")


def test_a_dicom_seg_needs_the_slices_it_refers_to(tmp_path, make, monkeypatch):
    scan, (lung, _) = series(tmp_path, make, edit=lambda i, ds: delattr(ds, "StudyInstanceUID")), drawn()
    mask = lung.astype(np.uint8)
    with pytest.raises(BadInput, match="does not come from DICOM slices"):
        write_mask(tmp_path / "m.dcm", mask, scan.geometry)
    with pytest.raises(BadInput, match=r"cannot refer to the scan: .*StudyInstanceUID"):
        write_mask(tmp_path / "m.dcm", mask, scan.geometry, slices=scan.slices)
    assert not (tmp_path / "m.dcm").exists()


@pytest.mark.parametrize("kind", ["seg", "rle", "labelmap", "rtstruct"])
def test_a_mask_with_altered_bytes_is_read_or_refused(tmp_path, make, kind):
    """Whatever is altered: a mask on the scan's grid, or one line."""
    scan, (lung, lesion) = series(tmp_path, make), drawn()
    path, draw = tmp_path / "m.dcm", random.Random(kind)
    if kind == "rtstruct":
        structure_set(path, {"x": contours_of(lung, scan.geometry)})
    elif kind == "rle":
        written_by_highdicom(path, scan, {"x": lesion.astype(float)}, "FRACTIONAL", RLELossless)
    else:
        written_by_highdicom(path, scan, {"x": lesion}, "LABELMAP" if kind == "labelmap" else "BINARY")
    whole = path.read_bytes()
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(132, len(raw))] = draw.randrange(256)
        path.write_bytes(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                mask, _ = read_mask(path, scan.geometry)
            except CovidSegError as error:
                assert "\n" not in str(error) and "Canary" not in str(error)
            else:
                assert mask.shape == SHAPE and mask.max() <= 1


def test_a_dicom_seg_of_an_enhanced_ct_whose_frames_lie_in_any_order(tmp_path, make):
    grid = make.geometry(SHAPE, spacing_xyz=(0.7, 0.9, 2.5))
    order = [3, 0, 6, 1, 5, 2, 4]
    scan = read_scan(enhanced(tmp_path / "series/one.dcm", make.ct(SHAPE), grid, order=order))
    _, lesion = drawn()
    write_mask(tmp_path / "m.dcm", lesion.astype(np.uint8), scan.geometry, segments={1: "lesion"}, slices=scan.slices)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.dcm", scan.geometry)[0], lesion)
    group = pydicom.dcmread(tmp_path / "m.dcm").PerFrameFunctionalGroupsSequence[0]
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    z = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
    assert order[source.ReferencedFrameNumber - 1] == round((z - grid.origin_xyz[2]) / 2.5)


def test_no_word_of_the_library_quotes_the_patient(tmp_path, make, capfd):
    """A name of one part, as many archives keep it, is warned of by highdicom with the name in it."""
    scan, (lung, _) = series(tmp_path, make, edit=lambda i, ds: setattr(ds, "PatientName", "CANARY")), drawn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_mask(tmp_path / "m.dcm", lung.astype(np.uint8), scan.geometry, slices=scan.slices)
    assert "CANARY" not in "".join(capfd.readouterr())
    assert pydicom.dcmread(tmp_path / "m.dcm").PatientName == "CANARY"
