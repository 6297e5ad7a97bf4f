"""A PACS export segmented, its masks corrected and trained on: DICOM SEG and 3D Slicer's format go out and come in."""

import json
import re

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.fileset import FileSet

from covidseg.scans.read import find_scans, read_scan
from volumes import Make, small_chest

PATIENTS = ("P0", "P1", "P2", "P3")


@pytest.fixture
def export(tmp_path):
    """Four patients in a medium's folders, written by pydicom with the DICOMDIR that lists them."""
    medium = FileSet()
    for number, patient in enumerate(PATIENTS):
        hu, _ = small_chest(number)

        def whole(i, ds, patient=patient):
            ds.PatientID, ds.StudyDate, ds.StudyTime, ds.StudyID = patient, "20200301", "120000", "1"
            ds.StudyInstanceUID = f"1.2.{patient[1]}"
            ds.SeriesNumber, ds.AccessionNumber = 2, ""

        grid = Make.geometry(hu.shape, spacing_xyz=(9.0, 8.0, 8.0))
        for file in sorted(Make.dicom(tmp_path / f"series{number}", hu, grid, edit=whole).iterdir()):
            medium.add(file)
    medium.write(tmp_path / "study" / "images")
    return tmp_path / "study" / "images"


def predicted(in_process, run, export, extension, output):
    arguments = (f"run={run}", f"input={export}", f"output={output}", f"extension={extension}")
    status, out, err = in_process("predict", *arguments)
    assert (status, err) == (0, ""), err
    assert f"{len(PATIENTS)} scans segmented" in out and "copy attributes" not in out
    return sorted((export.parents[1] / output).glob(f"*{extension}"))


@pytest.fixture
def run(make_run):
    """A lesion run whose mask is neither empty nor all of the scan."""
    from covidseg.inference.segmenter import Segmenter

    folder = make_run("lesion")

    def bright(self, grid, scan, progress=None, watch=None):
        return (scan.voxels > -600).astype(np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "segment_on", bright)
        yield folder


@pytest.mark.parametrize("extension", [".dcm", ".seg.nrrd"])
def test_what_is_predicted_on_an_export_can_be_trained_on(in_process, tmp_path, export, run, extension):
    files = predicted(in_process, run, export, extension, "study/lesions")
    sources = {source.id: read_scan(source.path) for source in find_scans(export)}
    assert [file.name for file in files] == [f"{name}_lesion{extension}" for name in sorted(sources)]
    assert in_process("prepare", "data.root=study", "contact_sheet=false")[::2] == (0, "")
    (folder,) = tmp_path.glob("data/prepared/folder-*")
    for name, scan in sources.items():
        labels = np.load(folder / name / "reference.npz")["labels"]
        np.testing.assert_array_equal(labels == 2, scan.voxels > -600)
        assert "segments: lesion" in json.loads((folder / name / "case.json").read_text())["notes"]


def test_a_dicom_seg_carries_its_patient_and_nothing_else_does(in_process, tmp_path, export, run):
    files = predicted(in_process, run, export, ".dcm", "masks")
    segs = [pydicom.dcmread(file) for file in files]
    assert sorted(seg.PatientID for seg in segs) == list(PATIENTS)
    sources = {read_scan(source.path).series_uid for source in find_scans(export)}
    assert {seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in segs} == sources
    for path in (tmp_path / "masks").iterdir():
        if path not in files:
            assert b"Canary" not in path.read_bytes()
            assert not re.search(rb"\bP[0-3]\b", path.read_bytes())


def test_a_correction_in_slicer_is_what_is_trained_on(in_process, tmp_path, export, run):
    """The file is written again by SimpleITK, as Slicer's own writer keeps its header: one voxel less, one more."""
    files = predicted(in_process, run, export, ".seg.nrrd", "study/lesions")
    image = sitk.ReadImage(str(files[0]))
    voxels = sitk.GetArrayFromImage(image)
    voxels[8, 14, 16], voxels[0, 0, 0] = 0, 1
    corrected = sitk.GetImageFromArray(voxels)
    corrected.CopyInformation(image)
    for key in image.GetMetaDataKeys():
        corrected.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(corrected, str(files[0]), useCompression=True)
    assert in_process("prepare", "data.root=study", "contact_sheet=false")[::2] == (0, "")
    (folder,) = tmp_path.glob("data/prepared/folder-*")
    name = files[0].name.removesuffix("_lesion.seg.nrrd")
    np.testing.assert_array_equal(np.load(folder / name / "reference.npz")["labels"] == 2, voxels)


def test_a_dicom_seg_of_another_kind_of_scan_is_refused_before_the_work(in_process, tmp_path, run):
    hu, _ = small_chest(0)
    Make.nifti(tmp_path / "scan.nii.gz", hu, Make.geometry(hu.shape, spacing_xyz=(9.0, 8.0, 8.0)))
    arguments = (f"run={run}", "input=scan.nii.gz", "output=masks")
    status, _, err = in_process("predict", *arguments, "extension=.dcm")
    assert status == 2 and "could refer to -> extension=.seg.nrrd, or .nii.gz" in err
    assert in_process("predict", *arguments, "extension=.seg.nrrd")[0] == 0
