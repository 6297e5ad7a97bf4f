"""3D Slicer's .seg.nrrd: segments by name, in one layer and in several, cropped to what is drawn."""

import gzip

import numpy as np
import pytest

from covidseg.scans.read import read_mask
from covidseg.system.errors import BadInput

SHAPE = (6, 20, 24)
LESION = (2, slice(8, 12), slice(6, 10))
NAMES = {"Lung": 1, "Lesion": 2}


def drawn():
    """(lung, lesion): boolean, the lesion inside the lung and a bit beyond it."""
    lung, lesion = np.zeros((2, *SHAPE), bool)
    lung[1:5, 4:16, 3:9] = True
    lesion[LESION] = True
    return lung, lesion


def slicer(path, layers, segments, geometry, start=(0, 0, 0), encoding="gzip"):
    """Write (layers, z, y, x) uint8 as Slicer 5 does; `segments`: (name, value, layer)."""
    layers = np.asarray(layers, np.uint8)
    several = len(layers) > 1
    steps = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_zyx[::-1]
    vectors = [f"({','.join(f'{mm:.12g}' for mm in steps[:, axis])})" for axis in range(3)]
    origin = ",".join(f"{mm:.12g}" for mm in geometry.to_mm(start[::-1]))
    sizes = [*([len(layers)] if several else []), *layers.shape[:0:-1]]
    header = [
        "NRRD0004", "# Complete NRRD file format specification at: http://teem.sourceforge.net/nrrd/format.html",
        "type: unsigned char", f"dimension: {len(sizes)}", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {'none ' if several else ''}{' '.join(vectors)}",
        f"kinds: {'list ' if several else ''}domain domain domain", f"encoding: {encoding}",
        f"space origin: ({origin})", "Segmentation_MasterRepresentation:=Binary labelmap",
    ]  # fmt: skip
    for number, (name, value, layer) in enumerate(segments):
        header += [
            f"Segment{number}_ID:=Segment_{number}", f"Segment{number}_Name:={name}",
            f"Segment{number}_LabelValue:={value}", f"Segment{number}_Layer:={layer}",
        ]  # fmt: skip
    voxels = np.moveaxis(layers, 0, -1).tobytes()  # the layer runs fastest
    path.write_bytes("\n".join([*header, "", ""]).encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels))
    return path


@pytest.mark.parametrize("encoding", ["gzip", "raw"])
def test_overlapping_segments_in_two_layers_are_told_by_name(tmp_path, make, encoding):
    lung, lesion = drawn()
    grid = make.geometry(SHAPE)
    segments = [("Lesion", 1, 1), ("Lung", 1, 0)]
    path = slicer(tmp_path / "a.seg.nrrd", [lung, lesion], segments, grid, encoding=encoding)
    mask, notes = read_mask(path, grid, labels=NAMES)
    np.testing.assert_array_equal(mask, np.where(lesion, 2, lung))
    assert "segments: Lesion, Lung" in notes


def test_one_layer_with_two_values_cropped(tmp_path, make):
    lung, lesion = drawn()
    grid = make.geometry(SHAPE)
    labels = np.where(lesion, 7, np.where(lung, 3, 0))
    part = labels[1:5, 4:16, 3:10]
    segments = [("lung", 3, 0), ("LESION", 7, 0)]
    path = slicer(tmp_path / "a.seg.nrrd", [part], segments, grid, start=(1, 4, 3))
    mask, _ = read_mask(path, grid, labels=NAMES | {"Nodule": 2})
    np.testing.assert_array_equal(mask, np.where(lesion, 2, lung))
    mask, _ = read_mask(path, grid, labels={"Lung": 0, "Lesion": 1})  # one of them is background
    np.testing.assert_array_equal(mask, lesion)


def test_the_one_segment_of_a_file_is_what_its_folder_holds(tmp_path, make):
    """Whatever its value: Slicer numbers segments in the order in which they were drawn."""
    _, lesion = drawn()
    grid = make.geometry(SHAPE)
    path = slicer(tmp_path / "a.seg.nrrd", [5 * lesion], [("Segment_1", 5, 0)], grid)
    mask, _ = read_mask(path, grid, labels={1: 2})
    np.testing.assert_array_equal(mask, 2 * lesion)


def test_several_segments_are_never_told_by_their_values(tmp_path, make):
    """The remedy names one of them; followed for each, it works."""
    lung, lesion = drawn()
    grid = make.geometry(SHAPE)
    labels = np.where(lesion, 2, lung)
    path = slicer(tmp_path / "a.seg.nrrd", [labels], [("Lung", 1, 0), ("Lesion", 2, 0)], grid)
    with pytest.raises(BadInput) as caught:
        read_mask(path, grid, labels={1: 2}, mapped_by="'+data.source.lesions={VALUE: lesion}'")
    text = str(caught.value)
    assert "holds the segments Lung, Lesion, and Lung has no meaning" in text
    assert "'+data.source.lesions={Lung: lesion}', or background" in text
    mask, _ = read_mask(path, grid, labels={1: 2, "Lung": 0, "Lesion": 2})
    np.testing.assert_array_equal(mask, 2 * lesion)


@pytest.mark.parametrize(
    "segments, layers, message",
    [
        ([("Lung", 1, 3)], 2, "no layer 3"),
        ([("Lung", "x", 0)], 1, "no whole LabelValue"),
        ([], 2, "names no segment"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, make, segments, layers, message):
    grid = make.geometry(SHAPE)
    path = slicer(tmp_path / "a.seg.nrrd", [drawn()[0]] * layers, segments, grid)
    with pytest.raises(BadInput, match=message):
        read_mask(path, grid, labels=NAMES)


def test_a_truncated_one_and_one_of_other_axes_are_refused(tmp_path, make):
    grid = make.geometry(SHAPE)
    path = slicer(tmp_path / "a.seg.nrrd", drawn(), [("Lung", 1, 0)], grid, encoding="raw")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(BadInput, match="truncated"):
        read_mask(path, grid, labels=NAMES)
    path.write_bytes(whole.replace(b"kinds: list", b"kinds: RGB-color"))
    with pytest.raises(BadInput, match="no list of layers"):
        read_mask(path, grid, labels=NAMES)
