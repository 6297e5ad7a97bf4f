"""MetaImage (.mha, .mhd with its .raw): a text header of `Key = Value` lines."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import Volume, assumed_direction, believable, require_shape
from covidseg.scans.gate.names import opened, require_kind, shown
from covidseg.scans.gate.payload import Payload
from covidseg.scans.gate.text_header import Fields, lines, truncated, voxel_file
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

_TYPES = {
    "met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4",
    "met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4", "met_double": "f8",
}  # fmt: skip
_BOOL = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def read(path: Path, assume: Assume) -> Volume:
    """The volume in a .mha or .mhd file; `BadInput` when a byte, a size or a place in it cannot be right."""
    what = shown(path)
    with opened(path) as stream:
        header = read_header(path, stream)
        geometry = _geometry(header, assume)
        dtype = _dtype(header)
        with voxel_file(path, stream, data_file(header)) as voxels:
            compression = "zlib" if header.choice("CompressedData", _BOOL, default="False") else None
            stored = Payload(voxels, what, compression).last_array(geometry.shape_zyx, dtype)
    return Volume(stored, geometry)


def read_header(path: Path, stream: BinaryIO) -> Fields:
    """The fields of the header; the stream stands behind it then."""
    what = shown(path)
    require_kind(path, stream.read(512), "MetaImage")
    stream.seek(0)
    header = Fields(what)
    for number, line in enumerate(lines(stream, what), start=1):
        key, equals, value = line.partition("=")
        if not equals:
            raise BadInput(what, f"line {number} of its header is not `Key = Value`", "mend the header")
        header.add(key.strip(), value.strip())
        if key.strip().lower() == "elementdatafile":
            return header
    raise truncated(what)


def data_file(header: Fields) -> str | None:
    """The name of the file that holds the voxels; None where they follow the header."""
    name = header.text("ElementDataFile")
    return None if name.upper() == "LOCAL" else name


def _dtype(header: Fields) -> np.dtype:
    if header.text("ElementNumberOfChannels", default="1") != "1":
        raise BadInput(header.what, "needs one 3-D scalar volume, holds several channels", "export a single channel")
    header.choice("BinaryData", {"true": True, "t": True, "1": True}, default="True")
    header.choice("HeaderSize", {"0": 0}, default="0")
    key = "BinaryDataByteOrderMSB" if "BinaryDataByteOrderMSB" in header else "ElementByteOrderMSB"
    big = header.choice(key, _BOOL, default="False")
    return np.dtype((">" if big else "<") + str(header.choice("ElementType", _TYPES)))


def _geometry(header: Fields, assume: Assume) -> Geometry:
    header.choice("ObjectType", {"image": None}, default="Image")
    header.choice("DistanceUnits", {"mm": None, "?": None}, default="mm")
    shape_zyx = require_shape(header.what, header.sizes("DimSize"))
    spacing = header.numbers("ElementSpacing", "ElementSize")
    origin = header.numbers("Offset", "Origin", "Position", default="0 0 0")
    matrix = header.numbers("TransformMatrix", "Rotation", "Orientation", default="")
    ranks = (header.sizes("NDims"), [len(header.sizes("DimSize"))], [len(spacing)], [len(origin)])
    if any(rank != [3] for rank in ranks) or len(matrix) not in (0, 9):
        raise BadInput(
            header.what,
            "needs one 3-D volume: its sizes, spacing, offset and matrix are not of 3 axes",
            "export it again",
        )
    if not matrix:
        return believable(header.what, shape_zyx, assumed_direction(header.what, assume), spacing, origin, assume)
    # the matrix lists one axis after the other; a direction matrix has them as columns
    return believable(header.what, shape_zyx, np.reshape(matrix, (3, 3)).T, spacing, origin, assume)
