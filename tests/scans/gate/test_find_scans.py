"""Which scans a path stands for."""

import errno
import os
import re

import numpy as np
import pytest

from covidseg.scans.read import find_scans, read_scan
from covidseg.system.errors import BadInput, EnvironmentFault


def ids(found):
    return [source.id for source in found]


def test_one_file_or_one_series(tmp_path, make):
    path = make.nifti(tmp_path / "a b.nii.gz", make.ct())
    assert [(s.id, s.path) for s in find_scans(path)] == [("a b", path)]
    series = make.dicom(tmp_path / "p1", make.ct(), name="{:03d}")
    assert [(s.id, s.path) for s in find_scans(series)] == [("p1", series)]


def test_a_folder_of_both(tmp_path, make):
    for name in ("b.nii.gz", "a.mha", "c.nrrd", "d.mhd"):
        make.any_format(tmp_path / name, make.ct())
    make.dicom(tmp_path / "e", make.ct())
    (tmp_path / "cases.csv").write_text("case\n")
    (tmp_path / ".hidden.nii").write_text("x")
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    make.nifti(tmp_path / "deep" / "f.nii", make.ct())
    make.dicom(tmp_path / "deep" / "deeper" / "g", make.ct())
    found = find_scans(tmp_path)
    assert ids(found) == ["a", "b", "c", "d", "e"]
    assert found.ignored == 3  # cases.csv, d.raw and the hidden one
    assert found.passed_over == 1  # deep
    assert sorted(ids(find_scans(tmp_path, recursive=True))) == list("abcdefg")


def test_what_is_refused(tmp_path, make):
    def refused(pattern):
        with pytest.raises(BadInput, match=pattern):
            find_scans(tmp_path)

    refused("holds no scan")
    make.nifti(tmp_path / "case.nii", make.ct())
    make.nifti(tmp_path / "CASE.nii.gz", make.ct())
    (one,) = find_scans(tmp_path)
    assert re.search("same id as .*, case apart", str(one.refused))
    (tmp_path / "CASE.nii.gz").unlink()
    (tmp_path / "IM1.dcm").touch()
    refused("DICOM slices beside case.nii")
    with pytest.raises(BadInput, match="holds the DICOM slices"):
        find_scans(tmp_path / "IM1.dcm")
    with pytest.raises(BadInput, match="does not exist"):
        find_scans(tmp_path / "absent")


def test_what_cannot_be_opened_is_refused_alone(tmp_path, make):
    """A batch goes on: reading refuses these, one by one."""
    make.nifti(tmp_path / "good.nii", make.ct())
    (tmp_path / "gone.nii.gz").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mha")
    (tmp_path / os.fsdecode(b"\xff.nii")).touch()
    found = find_scans(tmp_path)
    assert ids(found) == ["gone", "good", "pipe", "\\udcff"]
    for source in found:
        if source.id != "good":
            with pytest.raises(BadInput):
                read_scan(source.path)


def test_a_sub_folder_that_is_refused_is_refused_alone(tmp_path, make, monkeypatch):
    """One that may not be listed, and one of slices beside a volume."""
    make.nifti(tmp_path / "good.nii", make.ct())
    (tmp_path / "closed").mkdir()
    make.dicom(tmp_path / "mixed", make.ct())
    make.nifti(tmp_path / "mixed/case.nii", make.ct())
    list_folder = os.listdir

    def listdir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", listdir)
    found = {source.id: source for source in find_scans(tmp_path)}
    assert list(found) == ["good", "closed", "mixed"]
    with pytest.raises(EnvironmentFault, match="permission denied"):
        read_scan(found["closed"].path)
    with pytest.raises(BadInput, match="a volume among DICOM slices"):
        read_scan(found["mixed"].path)
    with pytest.raises(EnvironmentFault, match="permission denied"):
        find_scans(tmp_path / "closed")


def test_a_link_in_a_circle_ends(tmp_path, make):
    make.nifti(tmp_path / "case.nii", make.ct())
    (tmp_path / "again").symlink_to(tmp_path)
    assert ids(find_scans(tmp_path, recursive=True)) == ["case"]


def test_two_formats_of_one_name_refuse_that_scan_and_no_other(tmp_path, make):
    for name in ("a.nii.gz", "a.nrrd", "b.nii.gz"):
        make.any_format(tmp_path / name, make.ct())
    found = {source.id: source.refused for source in find_scans(tmp_path)}
    assert found["b"] is None and "a.nrrd: has the same id as a.nii.gz" in str(found["a"])


def dicomdir(folder):
    """The index that a PACS writes beside an export."""
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x02\x00UI\x16\x001.2.840.10008.1.3.10\x00\x00")


@pytest.fixture
def export(tmp_path, make):
    """Two patients of one study and series each, as a PACS exports them; the second one twice."""
    for number, place in enumerate(("PAT1/STU0/SER1", "PAT2/STU0/SER1", "PAT2/STU0/SER2")):
        (tmp_path / "export/DICOM" / place).mkdir(parents=True)
        make.dicom(tmp_path / "export/DICOM" / place, make.ct(seed=number), uid=f"1.2.{number}")
    dicomdir(tmp_path / "export")
    return tmp_path / "export"


def test_a_pacs_export_is_its_series_by_their_paths(export, make):
    """The leaf folders bear equal names; the index beside them is no scan."""
    found = find_scans(export)
    assert [(source.id, source.below) for source in found] == [
        ("DICOM-PAT1-STU0-SER1", "DICOM/PAT1/STU0/SER1"),
        ("DICOM-PAT2-STU0-SER1", "DICOM/PAT2/STU0/SER1"),
        ("SER2", "DICOM/PAT2/STU0/SER2"),
    ]
    for number, source in enumerate(found):
        assert np.array_equal(read_scan(source.path).voxels, make.ct(seed=number))
    (export / "DICOMDIR").unlink()
    with pytest.raises(BadInput, match=r"reading\.recursive=true"):
        find_scans(export)
    assert len(find_scans(export, recursive=True)) == 3


def test_every_series_of_a_folder_may_be_a_scan(tmp_path, make):
    (tmp_path / "in").mkdir()
    folder = make.dicom(tmp_path / "in/p1", make.ct(), uid="1.2.3")
    thin = make.geometry(make.ct().shape, spacing_xyz=(0.8, 0.9, 1.0))
    make.dicom(folder, make.ct(seed=1), thin, uid="1.2.4", name="B{:04d}.dcm")
    make.nifti(tmp_path / "in/p2.nii", make.ct(seed=2))
    found = find_scans(tmp_path / "in", series="all")
    assert [(source.id, source.series_uid) for source in found] == [
        ("p2", None), ("p1-series1", "1.2.4"), ("p1-series2", "1.2.3"),
    ]  # fmt: skip
    assert np.array_equal(read_scan(folder, series="1.2.4").voxels, make.ct(seed=1))
