"""Output faults J1 to J3, J5, P8: a mask is there whole, verified and nameless, or the old file stands as it was."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.scans import read as scans
from covidseg.scans.read import read_mask
from covidseg.scans.write import to_sitk, write_mask
from covidseg.system.errors import BadInput, EnvironmentFault

SHAPE = (3, 24, 28)
FORMATS = ["mask.nii", "mask.nii.gz", "mask.mha", "mask.nrrd"]
MASK = np.random.default_rng(0).integers(0, 3, SHAPE, np.uint8)
LABELS = {1: 1, 2: 2}


@pytest.mark.parametrize("name", FORMATS)
def test_j05_what_is_written_is_read_by_everyone(name, tmp_path, make):
    geometry = make.geometry(SHAPE)
    write_mask(tmp_path / name, MASK, geometry)
    mask, notes = read_mask(tmp_path / name, geometry, labels=LABELS)
    np.testing.assert_array_equal(mask, MASK)
    assert notes == ()
    image = sitk.ReadImage(str(tmp_path / name))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), MASK)
    assert os.listdir(tmp_path) == [name]


def test_j05_a_view_and_the_same_bytes_every_time(tmp_path, make):
    geometry = make.geometry(SHAPE)
    write_mask(tmp_path / "a.nii.gz", MASK, geometry)
    write_mask(tmp_path / "b.nii.gz", np.ascontiguousarray(MASK[:, ::-1])[:, ::-1], geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_j05_wrong_arrays_are_the_callers_fault(tmp_path, make):
    for wrong in (MASK.astype(np.int16), MASK[:1]):
        with pytest.raises(ValueError, match="expected uint8"):
            write_mask(tmp_path / "mask.nii.gz", wrong, make.geometry(SHAPE))
    assert not os.listdir(tmp_path)


def test_j02_names_that_cannot_be_written(tmp_path, make):
    geometry = make.geometry(SHAPE)
    for name in ("mask.NII.GZ", "mask.mhd", "mask.nhdr", "mask.txt", "mask", "mask.DCM"):
        with pytest.raises(BadInput, match="cannot be written in this format"):
            write_mask(tmp_path / name, MASK, geometry)
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        write_mask(tmp_path / "folder.nii.gz", MASK, geometry, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file where a folder is needed"):
        write_mask(tmp_path / "file" / "mask.nii.gz", MASK, geometry)
    (tmp_path / "scan.nii").touch()
    with pytest.raises(BadInput, match="beside"):
        write_mask(tmp_path / "scan.nii.gz", MASK, geometry)


def test_j03_an_existing_file_is_kept(tmp_path, make):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"the scan itself")
    with pytest.raises(BadInput, match="exists already"):
        write_mask(path, MASK, make.geometry(SHAPE))
    assert path.read_bytes() == b"the scan itself"
    write_mask(path, MASK, make.geometry(SHAPE), overwrite=True)
    np.testing.assert_array_equal(read_mask(path, make.geometry(SHAPE), labels=LABELS)[0], MASK)


@pytest.mark.parametrize("spoil", ["short", "other voxels", "other grid"])
def test_j01_what_the_disk_did_not_keep_never_takes_the_name(spoil, tmp_path, make, monkeypatch):
    """A writer that says nothing, as ITK's does on a full disk: found by reading back."""
    path = tmp_path / "mask.nii.gz"
    write_mask(path, MASK, make.geometry(SHAPE))
    before = path.read_bytes()
    honest = scans.nifti.write

    def lossy(temporary, mask, geometry, compressed):
        mask = mask[::-1] if spoil == "other voxels" else mask
        moved = make.geometry(SHAPE, origin_xyz=(1, 2, 3)) if spoil == "other grid" else geometry
        honest(temporary, mask, moved, compressed)
        if spoil == "short":
            os.truncate(temporary, 200)

    monkeypatch.setattr(scans.nifti, "write", lossy)
    with pytest.raises(EnvironmentFault, match="reads back"):
        write_mask(
            path,
            np.zeros_like(MASK) + np.arange(3, dtype=np.uint8)[:, None, None],
            make.geometry(SHAPE),
            overwrite=True,
        )
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["mask.nii.gz"]


@pytest.mark.parametrize("name", FORMATS)
def test_j01_full_disk(name, tmp_path):
    """A file size limit stands in for a full disk: an error, the old file as it was, nothing left over."""
    code = f"""
import numpy as np, resource, signal, sys
from pathlib import Path
from covidseg.scans.geometry import Geometry
from covidseg.scans.write import write_mask
from covidseg.system.errors import EnvironmentFault
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shape = (20, 64, 64)
mask = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    geometry = Geometry(shape, (1, 1, 1), (0, 0, 0), np.eye(3).ravel())
    write_mask(Path({str(tmp_path / name)!r}), mask, geometry, overwrite=True)
except (EnvironmentFault, OSError) as error:
    print(type(error).__name__)
"""
    (tmp_path / name).write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() in (["EnvironmentFault"], ["OSError"]), run.stderr
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", FORMATS)
def test_p08_no_patient_in_any_format(name, tmp_path, make):
    """From a DICOM series full of canaries to a mask without one."""
    from covidseg.scans.read import read_scan

    folder = make.dicom(tmp_path / "series", make.ct(SHAPE))
    assert b"Canary" in (folder / "IM0000.dcm").read_bytes()
    scan = read_scan(folder)
    write_mask(tmp_path / name, MASK, scan.geometry)
    raw = (tmp_path / name).read_bytes()
    raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert b"canary" not in raw.lower() and b"1901" not in raw
    image = to_sitk(MASK, scan.geometry)
    assert not image.GetMetaDataKeys()
    assert "canary" not in repr((scan.notes, scan.source)).lower()
