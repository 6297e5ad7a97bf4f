"""NRRD (.nrrd, .nhdr with its data file): a text header of `field: value` lines, then an empty one."""

import re
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import Volume, assumed_direction, believable, believable_steps, require_shape
from covidseg.scans.gate.names import opened, require_kind, shown
from covidseg.scans.gate.payload import Payload
from covidseg.scans.gate.text_header import Fields, lines, truncated, voxel_file
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

_ALIASES = {  # the format's own synonyms
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {alias: code for code, aliases in _ALIASES.items() for alias in aliases.split("|")}
_ENCODINGS = {"raw": None, "gzip": "gzip", "gz": "gzip"}
_ENDIAN: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_VECTOR = re.compile(r"\(([^()]*)\)")


def read(path: Path, assume: Assume) -> Volume:
    """The volume in a .nrrd or .nhdr file; `BadInput` when a byte, a size or a place in it cannot be right."""
    volume, _ = read_layers(path, assume, most=0)
    return Volume(volume.stored[..., 0], volume.geometry)


def read_layers(path: Path, assume: Assume, most: int = 64) -> tuple[Volume, Fields]:
    """(volume, header): as `read`, with a last axis of layers, those of a first of four axes that is a list, or one.

    `most`: so many layers there may be; 0 refuses that axis.
    """
    what = shown(path)
    with opened(path) as stream:
        header = read_header(path, stream)
        layers = _layers(header, most)
        geometry = _geometry(header, assume, has_layers=layers is not None)
        dtype = _dtype(header)
        with voxel_file(path, stream, data_file(header)) as voxels:
            compression = header.choice("encoding", _ENCODINGS)
            stored = Payload(voxels, what, compression).last_array((*geometry.shape_zyx, layers or 1), dtype)
    return Volume(stored, geometry), header


def _layers(header: Fields, most: int) -> int | None:
    """The length of the first of four axes, where it is a list; None where there are three."""
    sizes = header.sizes("sizes")
    if not most or header.sizes("dimension") != [4] or len(sizes) != 4:
        return None
    if header.text("kinds", default="").split()[:1] != ["list"] or not 1 <= sizes[0] <= most:
        raise BadInput(header.what, "its first axis is no list of layers", "save the segmentation again")
    return sizes[0]


def read_header(path: Path, stream: BinaryIO) -> Fields:
    """The fields of the header; the stream stands behind it then."""
    what = shown(path)
    require_kind(path, stream.read(512), "NRRD")
    stream.seek(0)
    header = Fields(what)
    rows = lines(stream, what)
    next(rows)  # the magic
    for number, line in enumerate(rows, start=2):
        if not line:
            return header
        if line.startswith("#"):
            continue
        if ":=" in line:
            key, _, value = line.partition(":=")
            header.keys[key] = value.strip()
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise BadInput(what, f"line {number} of its header is not `field: value`", "mend the header")
        header.add(name.strip(), value.strip())
    if data_file(header) is None:  # a detached header may end with its file
        raise truncated(what)
    return header


def data_file(header: Fields) -> str | None:
    """The name of the file that holds the voxels; None where they follow the header."""
    return header.text("data file", "datafile", default="") or None


def _dtype(header: Fields) -> np.dtype:
    dtype = np.dtype(str(header.choice("type", _TYPES)))
    for skip in ("line skip", "lineskip", "byte skip", "byteskip"):
        header.choice(skip, {"0": 0}, default="0")
    if dtype.itemsize == 1:
        return dtype
    return dtype.newbyteorder(header.choice("endian", _ENDIAN))


def _geometry(header: Fields, assume: Assume, has_layers: bool = False) -> Geometry:
    sizes = header.sizes("sizes")[has_layers:]
    shape_zyx = require_shape(header.what, sizes)
    if header.sizes("dimension") != [3 + has_layers] or len(sizes) != 3:
        raise BadInput(header.what, "needs one 3-D scalar volume", "export a single volume")
    if set(re.findall(r'"([^"]*)"', header.text("space units", "units", default=""))) - {"mm", ""}:
        raise BadInput(header.what, "its spacing is not in mm", "convert it to mm")
    if "space" not in header and "space directions" not in header:
        direction = assumed_direction(header.what, assume)
        return believable(header.what, shape_zyx, direction, header.numbers("spacings"), (0, 0, 0), assume)
    to_lps = np.array(header.choice("space", _TO_LPS))
    axes = _vectors(header, "space directions", 3)
    origin = _vectors(header, "space origin", 1)
    return believable_steps(header.what, shape_zyx, axes.T * to_lps[:, None], origin[0] * to_lps, assume)


def _vectors(header: Fields, name: str, count: int) -> np.ndarray:
    """(count, 3) from "(a,b,c) (d,e,f) ..."."""
    text = header.text(name)
    try:
        vectors = np.array([[float(part) for part in vector.split(",")] for vector in _VECTOR.findall(text)])
    except ValueError:
        vectors = np.empty(0)
    if vectors.shape != (count, 3):
        raise BadInput(header.what, f"{name}: {text[:60]!r} is not {count} vectors in mm", "mend the header")
    return vectors
