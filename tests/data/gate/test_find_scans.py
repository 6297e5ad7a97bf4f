"""Which scans a path stands for."""

import os

import pytest

from covidseg.data.scans import find_scans, read_scan
from covidseg.errors import BadInput


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
    assert sorted(ids(find_scans(tmp_path, recursive=True))) == list("abcdefg")


def test_what_is_refused(tmp_path, make):
    def refused(pattern):
        with pytest.raises(BadInput, match=pattern):
            find_scans(tmp_path)

    refused("holds no scan")
    make.nifti(tmp_path / "case.nii", make.ct())
    make.nifti(tmp_path / "CASE.nii.gz", make.ct())
    refused("same id as .*, case apart")
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


def test_a_link_in_a_circle_ends(tmp_path, make):
    make.nifti(tmp_path / "case.nii", make.ct())
    (tmp_path / "again").symlink_to(tmp_path)
    assert ids(find_scans(tmp_path, recursive=True)) == ["case"]
