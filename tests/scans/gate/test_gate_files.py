"""Input faults A1 to A16: what can be wrong with a file before its voxels mean anything."""

import gzip
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from covidseg.scans.gate.detached import voxel_path
from covidseg.scans.gate.names import require_case_id
from covidseg.scans.read import find_scans, read_mask, read_scan
from covidseg.scans.write import write_mask
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault

COUNT = settings(max_examples=40, deadline=None)
FORMATS = ("scan.nii", "scan.mha", "scan.nrrd", "scan.mhd")
SMALL = (3, 24, 28)


@COUNT
@given(data=st.data())
def test_a01_truncated_gzip(data, make, refused):
    with make.folder() as folder:
        path = make.nifti(folder / "scan.nii.gz", make.ct(SMALL))
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        refused(path, "truncated|empty|is not gzip")


@COUNT
@given(data=st.data(), name=st.sampled_from(FORMATS), compress=st.booleans())
def test_a02_truncated_uncompressed(data, name, compress, make, refused):
    """Also the zlib and gzip inside .mha, .mhd and .nrrd."""
    with make.folder() as folder:
        path = make.any_format(folder / name, make.ct(SMALL), compress=compress)
        cut = next((p for p in folder.iterdir() if p.suffix in (".raw", ".zraw")), path)
        whole = cut.read_bytes()
        cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        refused(path, "truncated|empty|is not (NIfTI|NRRD|MetaImage)")


@COUNT
@given(data=st.data(), name=st.sampled_from(["scan.nii.gz", "scan.mha", "scan.nrrd"]))
def test_a03_flipped_byte_of_a_compressed_stream(data, name, make):
    """Refused; or, where the byte means nothing (gzip's time stamp), the same voxels."""
    with make.folder() as folder:
        path = make.any_format(folder / name, make.ct(SMALL), compress=True)
        whole = bytearray(path.read_bytes())
        start = {"scan.nii.gz": 0, "scan.mha": whole.find(b"LOCAL\n") + 6, "scan.nrrd": whole.find(b"\n\n") + 2}[name]
        whole[data.draw(st.integers(start, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(whole)
        try:
            np.testing.assert_array_equal(read_scan(path).voxels, make.ct(SMALL))
        except BadInput as error:
            assert any(word in error.wrong for word in ("checksum", "truncated", "follow", "is not", "gzip"))


def test_a03_flipped_voxel_is_a_checksum_error(tmp_path, make, refused):
    """The one that every reader lets pass: deflate's stored blocks, where a flipped bit stays a valid stream."""
    path = make.nifti(tmp_path / "scan.nii", make.ct())
    raw = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    path.unlink()
    raw[len(raw) // 2] ^= 4
    (tmp_path / "scan.nii.gz").write_bytes(raw)
    nib.load(tmp_path / "scan.nii.gz").get_fdata()
    refused(tmp_path / "scan.nii.gz", "checksum")


@COUNT
@given(extra=st.integers(-400, 400).filter(bool), name=st.sampled_from(["s.nii", "s.nii.gz", "s.mha", "s.nrrd"]))
def test_a04_payload_of_another_length(extra, name, make, refused):
    with make.folder() as folder:
        path = make.any_format(folder / name, make.ct(SMALL))
        zipped = name.endswith(".gz")
        raw = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
        raw = raw[:extra] if extra < 0 else raw + b"\7" * extra
        path.write_bytes(gzip.compress(raw) if zipped else raw)
        refused(path, "truncated|holds")


def test_a04_bytes_after_the_gzip_stream(tmp_path, make, refused):
    path = make.nifti(tmp_path / "scan.nii.gz", make.ct())
    path.write_bytes(path.read_bytes() + b"rest")
    refused(path, "follow")


def test_a04_gzip_of_several_members_is_one_file(tmp_path, make):
    """bgzip and `cat a.gz b.gz` write such files."""
    raw = gzip.decompress(make.nifti(tmp_path / "scan.nii.gz", make.ct()).read_bytes())
    parts = [gzip.compress(raw[i : i + 1000]) for i in range(0, len(raw), 1000)]
    (tmp_path / "scan.nii.gz").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.nii.gz").voxels, make.ct())


@pytest.mark.parametrize("name", ["scan.nii.gz", *FORMATS])
def test_a05_empty_and_header_only(name, tmp_path, make, refused):
    path = make.any_format(tmp_path / name, make.ct())
    whole = path.read_bytes()
    path.write_bytes(b"")
    refused(path, "empty")
    if name.endswith(".nii.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(whole)[:352]))
    elif name.endswith(".mhd"):
        path.write_bytes(whole)
        (tmp_path / "scan.raw").write_bytes(b"")
    else:
        path.write_bytes(whole[: len(whole) - make.ct().nbytes])
    refused(path, "truncated|empty")


@pytest.mark.parametrize("name", ["scan.nii.gz", *FORMATS])
@pytest.mark.parametrize(
    "content, says",
    [
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"scan of patient one\n" * 40, "looks like text"),
        (b"PK\x03\x04" + bytes(400), "unpack"),
    ],
)
def test_a06_not_a_scan_at_all(name, content, says, tmp_path, refused):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, says)


WRONG_NAMES = [
    ("a.nii", "b.nii.gz", "looks like NIfTI"),
    ("a.nrrd", "b.nii.gz", "looks like NRRD"),
    ("a.nii.gz", "b.nii", "looks like gzip"),
    ("a.mha", "b.nrrd", "looks like MetaImage"),
    ("a.nii", "b.mha", "looks like NIfTI"),
]


@pytest.mark.parametrize("real, name, says", WRONG_NAMES)
def test_a07_wrong_extension(real, name, says, tmp_path, make, refused):
    make.any_format(tmp_path / real, make.ct()).rename(tmp_path / name)
    assert "rename" in refused(tmp_path / name, says)


def test_a07_other_kinds_by_name(tmp_path, make, refused):
    (tmp_path / "scan.txt").write_text("hello")
    refused(tmp_path / "scan.txt", "no extension of a volume")
    make.dicom(tmp_path / "series", make.ct())
    refused(tmp_path / "series" / "IM0000.dcm", "DICOM slices as their folder")


@pytest.mark.parametrize("name, sibling", [("s.nii.gz", "s.nii"), ("s.nii", "s.nii.gz")])
def test_a08_sibling(name, sibling, tmp_path, make, refused):
    make.nifti(tmp_path / name, make.ct())
    (tmp_path / sibling).touch()
    assert sibling in refused(tmp_path / name, "beside")


def test_a09_what_is_no_file(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "gone.nii.gz").symlink_to("nowhere")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    refused(tmp_path / "pipe.nii.gz", "pipe")
    refused(tmp_path / "loop.nii.gz", "leads back to itself")
    refused(tmp_path / "gone.nii.gz", "link to nothing")
    refused(tmp_path / "device.nii.gz", "device")
    refused(tmp_path / "absent.nii.gz", "does not exist")
    refused(tmp_path / ("n" * 300), "too long")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "holds no CT series")


def test_a10_permission_is_named():
    """Read as an unprivileged user in a fork, where root would be let through."""
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "scan.nii.gz"
        path.write_bytes(b"x")
        path.chmod(0)
        folder.chmod(0o755)
        reading, writing = os.pipe()
        if not os.fork():
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                read_scan(path)
            except EnvironmentFault as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.wait()
        assert b"permission denied" in os.read(reading, 1000)
        os.close(reading)
    finally:
        shutil.rmtree(folder)


ODD_NAMES = ["a b", 'it\'s "x"', "$(x)", "two\nlines", "e\u0301", "\u00e9", "-rf", "n" * 248, "%s{0}", "..", "\x1b[31m"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40)
NAMES = st.sampled_from(ODD_NAMES) | ANY_TEXT


@COUNT
@given(stem=NAMES)
def test_a11_any_name_reads_and_writes(stem, make):
    with make.folder() as folder:
        scan = read_scan(make.nifti(folder / f"{stem}.nii.gz", make.ct(SMALL)))
        assert scan.source.isprintable()
        (folder / "out").mkdir()
        mask = (scan.voxels > 0).astype(np.uint8)
        write_mask(folder / "out" / f"{stem}.nii.gz", mask, scan.geometry)
        assert [p.name for p in (folder / "out").iterdir()] == [f"{stem}.nii.gz"]
        np.testing.assert_array_equal(read_mask(folder / "out" / f"{stem}.nii.gz", scan.geometry)[0], mask)


def test_a11_upper_case_extension_is_read_but_not_written(tmp_path, make, refused):
    scan = read_scan(make.nifti(tmp_path / "SCAN.NII.GZ", make.ct()))
    mask = np.zeros(scan.voxels.shape, np.uint8)
    refused(tmp_path / "MASK.NII.GZ", "lower case", read=lambda path: write_mask(path, mask, scan.geometry))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a b", "x" * 129, "a\n", "é"])
def test_a11_case_ids_cannot_leave_their_folder(name):
    assert require_case_id("Case_01.a-b") == "Case_01.a-b"
    with pytest.raises(BadInput, match="no case id"):
        require_case_id(name)


def test_a12_name_that_is_not_utf8(tmp_path, make, refused):
    """SimpleITK ends the process on these, so they never reach it: file, folder, output."""
    good = make.nifti(tmp_path / "scan.nii.gz", make.ct())
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.nii.gz")
    shutil.copy(good, bad)
    refused(bad, "UTF-8")
    bad_folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")
    os.mkdir(bad_folder)
    shutil.copy(good, bad_folder)
    refused(os.path.join(bad_folder, "scan.nii.gz"), "UTF-8")
    scan = read_scan(good)
    mask = np.zeros(scan.voxels.shape, np.uint8)
    refused(bad, "UTF-8", read=lambda path: write_mask(path, mask, scan.geometry, overwrite=True))
    refused(tmp_path / "nul\0.nii.gz", "NUL")


def test_a13_hidden_files_are_counted(tmp_path, make):
    for name in ("._scan.nii.gz", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    make.nifti(tmp_path / "scan.nii.gz", make.ct())
    found = find_scans(tmp_path)
    assert [source.id for source in found] == ["scan"] and found.ignored == 3
    series = make.dicom(tmp_path / "series", make.ct())
    (series / "._IM0000.dcm").write_bytes(b"x")
    (series / "Thumbs.db").write_bytes(b"x")
    assert "2 hidden file(s) ignored" in read_scan(series).notes


def _bomb_lines() -> list[str]:
    """Read three bombs under a memory limit and print what was said; runs in its own process."""
    soft = 1 << 30
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + soft, used + soft))
    lines = []
    for name in sys.argv[1:]:
        try:
            read_scan(name)
        except CovidSegError as error:
            lines.append(str(error))
    return lines


def test_a14_bombs_are_refused_before_memory_is_taken(tmp_path, make, refused):
    fine = make.geometry(spacing_xyz=(0.3, 0.3, 0.3))
    honest = gzip.decompress(make.nifti(tmp_path / "scan.nii.gz", make.ct(), fine).read_bytes())[:352]

    def header(*sizes):
        raw = bytearray(honest)
        struct.pack_into("<8h", raw, 40, 3, *sizes, 1, 1, 1, 1)
        return bytes(raw)

    member = gzip.compress(bytes(16 << 20))
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(header(300, 3000, 3000) + bytes(90 << 20)))
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(header(32767, 32767, 32767) + bytes(1 << 20)))
    (tmp_path / "real.nii.gz").write_bytes(gzip.compress(header(1000, 1024, 1024)) + member * 125)
    (tmp_path / "tail.nii.gz").write_bytes(gzip.compress(header(10, 10, 10)) + member * 125)
    (tmp_path / "mha.mha").write_bytes(
        b"NDims = 3\nDimSize = 3000 3000 300\nElementSpacing = .3 .3 .3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        b"CompressedData = True\nElementType = MET_DOUBLE\nElementDataFile = LOCAL\n" + zlib.compress(bytes(1 << 20))
    )
    names = [str(tmp_path / name) for name in ("lie.nii.gz", "huge.nii.gz", "real.nii.gz", "tail.nii.gz", "mha.mha")]
    code = "import runpy, sys; print(*runpy.run_path(sys.argv.pop(1))['_bomb_lines'](), sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code, __file__, *names], capture_output=True, text=True, timeout=60)
    lines = run.stdout.splitlines()
    assert len(lines) == 5, run.stderr
    for line, said in zip(lines, ("promises", "mm long", "claims 2.1 GB", "holds more", "promises"), strict=True):
        assert said in line


@pytest.mark.parametrize("name", ["/etc/passwd", "../s.raw", "a/b.raw", "..\\b.raw", "img%03d.raw", "LIST"])
def test_a15_voxels_elsewhere(name, tmp_path, make, refused):
    path = make.itk(tmp_path / "scan.mhd", make.ct())
    path.write_text(path.read_text().replace("scan.raw", name))
    assert "/etc" not in refused(path, "same folder|does not exist")
    path = make.itk(tmp_path / "scan.nhdr", make.ct())
    header = path.read_text()
    assert "data file: scan.raw" in header
    path.write_text(header.replace("data file: scan.raw", f"data file: {name}"))
    refused(path, "same folder|does not exist")


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_a15_voxels_in_this_folder_by_another_spelling(suffix, tmp_path, make):
    path = make.itk(tmp_path / f"scan.{suffix}", make.ct())
    path.write_text(path.read_text().replace("scan.raw", ".//./scan.raw"))
    np.testing.assert_array_equal(read_scan(path).voxels, make.ct())
    assert voxel_path(path) == tmp_path / "scan.raw"
    for whole in (make.nifti(tmp_path / "a.nii", make.ct()), make.itk(tmp_path / "a.mha", make.ct())):
        assert voxel_path(whole) is None
    path.write_text("damaged")
    assert voxel_path(path) is None


@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=3))
def test_a16_mutated_nifti_header(edits, make):
    """Refused, or read as nibabel reads it."""
    with make.folder() as folder:
        path = make.nifti(folder / "scan.nii", make.ct(SMALL))
        raw = bytearray(path.read_bytes())
        for offset, value in edits:
            raw[offset] = value
        path.write_bytes(raw)
        try:
            scan = read_scan(path)
        except BadInput as error:
            assert "\n" not in str(error)
            return
        image = nib.load(path)
        expected = np.clip(image.get_fdata().reshape(scan.voxels.shape[::-1]).transpose(2, 1, 0), -1024, 3071)
        assert np.abs(scan.voxels - expected).max() <= 0.5
        corner = np.array(scan.voxels.shape[::-1]) - 1
        place = nib.affines.apply_affine(image.affine, [[0, 0, 0], corner]) * [-1, -1, 1]
        assert np.linalg.norm(scan.geometry.to_mm([[0, 0, 0], corner]) - place, axis=1).max() < 0.1


def field_names(raw):
    """What stands before `=` or `:` in the lines of a text header."""
    return {re.split(rb"\s*[=:]", line)[0] for line in bytes(raw[:2000]).split(b"\n")}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(["scan.mha", "scan.nrrd"]))
def test_a16_mutated_text_header(data, name, make):
    """Refused, or read as SimpleITK reads it."""
    with make.folder() as folder:
        path = make.itk(folder / name, make.ct(SMALL))
        raw = bytearray(path.read_bytes())
        names = field_names(raw)
        end = len(raw) - make.ct(SMALL).nbytes
        for _ in range(data.draw(st.integers(1, 2))):
            raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(32, 126))
        path.write_bytes(raw)
        try:
            scan = read_scan(path)
        except CovidSegError as error:
            assert "\n" not in str(error)
            return
        if {name.lower() for name in field_names(raw) - names} & {name.lower() for name in names}:
            return  # `Elementspacing`: SimpleITK passes it over and takes 1 mm, the gate reads what is meant
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:  # a field that matters to SimpleITK alone, such as the name of the binary flag
            return
        assert np.abs(scan.voxels - np.clip(sitk.GetArrayFromImage(image), -1024, 3071)).max() <= 0.5
        last = tuple(n - 1 for n in image.GetSize())
        np.testing.assert_allclose(scan.geometry.to_mm(last), image.TransformIndexToPhysicalPoint(last), atol=0.05)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_k9_voxels_that_are_a_link_to_elsewhere_are_refused(tmp_path, suffix):
    """A tree of links, in which header and voxels both lead to one folder, is read like what it leads to."""
    image = sitk.GetImageFromArray(np.full((4, 5, 6), -1000, np.int16))
    (tmp_path / "there").mkdir()
    sitk.WriteImage(image, str(tmp_path / f"there/scan{suffix}"))
    (header,) = (tmp_path / "there").glob(f"*{suffix}")
    (voxels,) = set((tmp_path / "there").iterdir()) - {header}
    (tmp_path / "links").mkdir()
    for file in (header, voxels):
        (tmp_path / "links" / file.name).symlink_to(file)
    read_scan(tmp_path / "links" / header.name)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / header.name).write_bytes(header.read_bytes())
    (tmp_path / "mixed" / voxels.name).symlink_to(voxels)
    with pytest.raises(BadInput, match="are a link to another folder than the header's"):
        read_scan(tmp_path / "mixed" / header.name)
    (tmp_path / "mixed" / voxels.name).unlink()
    (tmp_path / "mixed/real.raw").write_bytes(voxels.read_bytes())
    (tmp_path / "mixed" / voxels.name).symlink_to("real.raw")  # within the folder
    read_scan(tmp_path / "mixed" / header.name)
