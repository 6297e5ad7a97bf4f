"""K14: lines that a mutant could change with every test green."""

import gzip
import os
import struct
import types

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.data.prepare.fingerprints import Fingerprints
from covidseg.scans.gate import payload
from covidseg.scans.read import read_scan
from covidseg.sweep import driver
from covidseg.sweep.rows import State
from covidseg.system.errors import BadInput

PIXDIM, QFORM_CODE = 76, 252  # places in a NIfTI-1 header


@pytest.fixture
def scan(tmp_path):
    """A NIfTI file of 6 x 7 x 8 voxels."""
    hu = np.repeat(np.int16([-1000, -850, 40, 60]), 8 * 7 * 6 // 4).reshape(8, 7, 6)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nii"))
    return tmp_path / "scan.nii"


def test_k14_content_changed_in_place_with_the_old_times_is_seen(tmp_path):
    file = tmp_path / "scan.raw"
    file.write_bytes(b"one way")
    fingerprints = Fingerprints(tmp_path / "memory.json")
    before, state = fingerprints.of([file])[file], file.stat()
    file.write_bytes(b"another")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as rsync and unzip do: the time of the change remains
    assert file.stat().st_size == state.st_size and file.stat().st_mtime_ns == state.st_mtime_ns
    assert Fingerprints(tmp_path / "memory.json").of([file])[file] != before


def test_k14_spacing_that_contradicts_the_sform_alone_is_refused(scan):
    raw = bytearray(scan.read_bytes())
    struct.pack_into("<h", raw, QFORM_CODE, 0)
    scan.write_bytes(raw)
    assert read_scan(scan).geometry.spacing_zyx == pytest.approx((3.0, 2.0, 2.0))
    struct.pack_into("<f", raw, PIXDIM + 3 * 4, 5.0)
    scan.write_bytes(raw)
    with pytest.raises(BadInput, match="sform and pixdim place its corners"):
        read_scan(scan)


def test_k14_more_voxels_than_any_scan_has_are_refused(scan, monkeypatch):
    wanted = 8 * 7 * 6 * 2
    monkeypatch.setattr(payload, "_MAX_BYTES", wanted)
    read_scan(scan)
    monkeypatch.setattr(payload, "_MAX_BYTES", wanted - 1)
    packed = scan.with_name("packed.nii.gz")
    packed.write_bytes(gzip.compress(scan.read_bytes()))
    for file in (scan, packed):
        with pytest.raises(BadInput, match="GB of voxels in"):
            read_scan(file)


def test_k14_a_run_that_another_sweep_made_meanwhile_is_not_started():
    row = types.SimpleNamespace(state=State.WAITING, judge=lambda retry_failed: setattr(row, "state", State.DONE))
    started, seen = [], []
    executor = types.SimpleNamespace(
        next=lambda waiting: waiting[0] if waiting else None, start=started.append, flush=list
    )
    driver._fill([row], executor, types.SimpleNamespace(save=list), types.SimpleNamespace(event=seen.append))
    assert (started, seen, row.state) == ([], [row], State.DONE)
