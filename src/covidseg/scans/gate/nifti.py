"""NIfTI-1 in one file (.nii, .nii.gz): header, voxels and geometry, read and written without another library.

ITK's own reader returns zeros for what is missing, zeros for NaN, the voxels of a sibling file, and goes by qform where
others go by sform. Here one pass over the bytes decodes, counts and checks them.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import (
    Volume,
    apart,
    assumed_direction,
    believable,
    believable_steps,
    require_shape,
    require_spacing,
)
from covidseg.scans.gate.names import opened, refuse_sibling, require_kind, shown, suffix_of
from covidseg.scans.gate.payload import Payload
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

_HEADER = 348
_FIRST_VOXEL = 352
_MAX_EXTENSION = 16 << 20
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NOT_SCALAR = {32: "complex", 128: "RGB", 1792: "complex", 2048: "complex", 2304: "RGBA"}
_RAS_LPS = np.diag([-1.0, -1.0, 1.0])


def read(path: Path, assume: Assume) -> Volume:
    """The volume in a .nii or .nii.gz file; `BadInput` when a byte, a size or a place in it cannot be right."""
    what = shown(path)
    refuse_sibling(path)
    with opened(path) as stream:
        compressed = suffix_of(path) == ".nii.gz"
        if compressed:
            require_kind(path, stream.read(_HEADER), "gzip")
            stream.seek(0)
        payload = Payload(stream, what, "gzip" if compressed else None)
        require_kind(path, payload.peek(_HEADER), "NIfTI")
        header = _Header(what, payload.read(_HEADER))
        payload.read(header.first_voxel - _HEADER)
        geometry = header.geometry(assume)
        stored = payload.last_array(geometry.shape_zyx, header.dtype)
    return Volume(stored, geometry, *header.scaling)


class _Header:
    """The 348 bytes, in either byte order, decoded as far as they bear on voxels and their places."""

    def __init__(self, what: str, raw: bytes):
        self.what, self.raw = what, raw
        orders = [order for order in "<>" if struct.unpack_from(f"{order}i", raw)[0] == _HEADER]
        if not orders:
            raise BadInput(what, "damaged: its header does not begin with its own length", "copy or download it again")
        self.order = orders[0]
        rank, *sizes = self._get("8h", 40)
        if not 1 <= rank <= 7:
            raise BadInput(what, f"claims {rank} dimensions", "needs one 3-D scalar volume")
        self.shape_zyx = require_shape(what, sizes[:rank])
        self.pixdim = self._get("8f", 76)
        self.dtype = self._dtype()
        self.scaling = self._scaling()
        self.first_voxel = self._first_voxel()

    def _get(self, form: str, offset: int) -> tuple:
        return struct.unpack_from(self.order + form, self.raw, offset)

    def _dtype(self) -> np.dtype:
        code, bits = self._get("2h", 70)
        if code not in _TYPES:
            found = _NOT_SCALAR.get(code, f"voxels of NIfTI type {code}")
            raise BadInput(self.what, f"needs one 3-D scalar volume, holds {found}", "convert it to int16")
        dtype = np.dtype(self.order + _TYPES[code])
        if bits != 8 * dtype.itemsize:
            raise BadInput(
                self.what, f"header contradicts itself: {_TYPES[code]} voxels of {bits} bits", "copy it again"
            )
        return dtype

    def _scaling(self) -> tuple[float, float]:
        """(slope, intercept). A slope of 0 or NaN means unscaled; readers disagree on an intercept beside it."""
        slope, intercept = self._get("2f", 112)
        if slope == 0 or np.isnan(slope):
            if intercept == 0 or np.isnan(intercept):
                return 1.0, 0.0
        elif np.isfinite(slope) and np.isfinite(intercept):
            return slope, intercept
        wrong = f"scl_slope {slope} with scl_inter {intercept} has no one meaning"
        raise BadInput(self.what, wrong, "convert it again")

    def _first_voxel(self) -> int:
        (offset,) = self._get("f", 108)
        if not (_FIRST_VOXEL <= offset <= _MAX_EXTENSION and offset == int(offset)):
            raise BadInput(self.what, f"vox_offset {offset} is impossible", "copy or download it again")
        return int(offset)

    def geometry(self, assume: Assume) -> Geometry:
        """That of sform, else of qform; all that the header gives must agree to 0.1 voxel at every corner."""
        units = self.raw[123] & 7
        if units not in (0, 2):
            name = {1: "metres", 3: "micrometres"}.get(units, "unknown units")
            raise BadInput(self.what, f"spacing in {name}", "convert it to mm")
        spacing = require_spacing(self.what, self.pixdim[1:4], assume)
        placed = [(name, self._place(affine, assume)) for name, affine in self._affines(spacing)]
        if not placed:
            direction = assumed_direction(self.what, assume)
            return believable(self.what, self.shape_zyx, direction, spacing, (0, 0, 0), assume)
        (name, geometry), *others = placed
        for other, rival in others:
            if apart(geometry, rival):
                far = geometry.displacement_mm(rival)
                wrong = f"{name} and {other} place its corners {far:.3g} mm apart"
                raise BadInput(self.what, wrong, "decide which is right")
        return geometry

    def _affines(self, spacing: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(name, RAS affine (3, 4)) of each source of geometry; the first is the one to use."""
        qform_code, sform_code = self._get("2h", 252)
        if not (0 <= qform_code <= 5 and 0 <= sform_code <= 5):
            raise BadInput(
                self.what, f"qform_code {qform_code}, sform_code {sform_code} mean nothing", "convert it again"
            )
        found = []
        sform = np.reshape(self._get("12f", 280), (3, 4))
        if sform_code > 0 and sform[:, :3].any():  # all zeros say nothing, whatever the code says of them
            norms = np.linalg.norm(sform[:, :3], axis=0)
            found.append(("sform", sform))
            if np.isfinite(sform).all() and norms.all():  # else the first is refused anyway
                found.append(("pixdim", np.column_stack([sform[:, :3] * (spacing / norms), sform[:, 3]])))
        if qform_code > 0:
            found.append(("qform", np.column_stack([self._rotation() * spacing, self._get("3f", 268)])))
        return found

    def _rotation(self) -> np.ndarray:
        """(3, 3) from the unit quaternion (a, b, c, d) of which the header holds b, c, d; nifti1.h, method 2."""
        b, c, d = self._get("3f", 256)
        rest = 1 - (b * b + c * c + d * d)
        if not rest > -1e-5:  # also when NaN
            raise BadInput(self.what, f"qform quaternion ({b:g}, {c:g}, {d:g}) is no rotation", "convert it again")
        if rest < 1e-7:  # half a turn: a is rounding error
            (b, c, d), a = np.array([b, c, d]) / np.sqrt(b * b + c * c + d * d), 0.0
        else:
            a = np.sqrt(rest)
        hand = -1 if self.pixdim[0] < 0 else 1
        return np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c) * hand],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b) * hand],
                [2 * (b * d - a * c), 2 * (c * d + a * b), (a * a + d * d - b * b - c * c) * hand],
            ]
        )

    def _place(self, affine: np.ndarray, assume: Assume) -> Geometry:
        """Through single precision, in which `write` stores it: a mask read back has this geometry to the last bit."""
        with np.errstate(invalid="ignore"):  # NaN and infinity are refused next
            affine = _RAS_LPS @ affine.astype(np.float32).astype(np.float64)
        return believable_steps(self.what, self.shape_zyx, affine[:, :3], affine[:, 3], assume)


_WRITTEN = {"uint8": (2, zlib.Z_RLE), "float32": (16, zlib.Z_DEFAULT_STRATEGY)}  # type code; labels lie in runs


def write(path: Path, voxels: np.ndarray, geometry: Geometry, compressed: bool) -> None:
    """Write uint8 or float32 (z, y, x) with sform and qform on `geometry`: the same bytes each time, and no names."""
    code, strategy = _WRITTEN[voxels.dtype.name]
    affine = _RAS_LPS @ np.column_stack([geometry.step_mm, geometry.origin_xyz])
    hand, quaternion = _quaternion(_RAS_LPS @ np.reshape(geometry.direction, (3, 3)))
    header = bytearray(_FIRST_VOXEL)
    struct.pack_into("<i", header, 0, _HEADER)
    struct.pack_into("<8h", header, 40, 3, *geometry.shape_zyx[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, 8 * voxels.itemsize)
    struct.pack_into("<8f", header, 76, hand, *geometry.spacing_zyx[::-1], 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, _FIRST_VOXEL, 1, 0)  # vox_offset, scl_slope, scl_inter
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 1, 1)  # qform and sform: scanner coordinates
    struct.pack_into("<6f", header, 256, *quaternion, *affine[:, 3])
    struct.pack_into("<12f", header, 280, *affine.ravel())
    struct.pack_into("4s", header, 344, b"n+1\0")
    encoder = zlib.compressobj(6, zlib.DEFLATED, 31, strategy=strategy) if compressed else None
    with open(path, "wb") as stream:
        for part in (bytes(header), *(np.ascontiguousarray(plane).tobytes() for plane in voxels)):
            stream.write(encoder.compress(part) if encoder else part)
        if encoder:
            stream.write(encoder.flush())


def _quaternion(rotation: np.ndarray) -> tuple[float, np.ndarray]:
    """(qfac, (b, c, d)): the quaternion of a (3, 3) direction matrix, its third column flipped when left-handed."""
    hand = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    r = rotation * [1, 1, hand]
    # 4 q q^T, from which the row of the largest component gives q without cancellation
    outer = np.array(
        [
            [1 + r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], 1 + r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 - r[0, 0] - r[1, 1] + r[2, 2]],
        ]
    )
    row = outer[np.argmax(np.diag(outer))]
    unit = row / np.linalg.norm(row)
    return hand, unit[1:] * (1 if unit[0] >= 0 else -1)
