"""One DICOM file, read without trusting it and without touching what identifies the patient.

Only the attributes named in `_WANTED` are ever decoded; names, dates and free text are skipped over as bytes, so that
no message, note or output can hold them. Uncompressed voxels are decoded here; compressed ones by GDCM, once
every fragment is known to be there.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from covidseg.scans.gate.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    PIXEL_DATA,
    Damaged,
    Element,
    elements,
    inflated,
    looks_like_dicom,
)
from covidseg.scans.gate.names import opened, shown
from covidseg.system.errors import BadInput

_WANTED = {
    0x00020002: "MediaStorageSOPClassUID", 0x00020010: "TransferSyntaxUID", 0x00080008: "ImageType",
    0x00080016: "SOPClassUID", 0x00080060: "Modality",
    0x00180050: "SliceThickness", 0x0020000E: "SeriesInstanceUID", 0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient", 0x00200037: "ImageOrientationPatient", 0x00201002: "ImagesInAcquisition",
    0x00280002: "SamplesPerPixel", 0x00280004: "PhotometricInterpretation", 0x00280008: "NumberOfFrames",
    0x00280010: "Rows", 0x00280011: "Columns", 0x00280030: "PixelSpacing", 0x00280100: "BitsAllocated",
    0x00280101: "BitsStored", 0x00280102: "HighBit", 0x00280103: "PixelRepresentation", 0x00280120: "PixelPaddingValue",
    0x00281052: "RescaleIntercept", 0x00281053: "RescaleSlope", 0x00282110: "LossyImageCompression",
}  # fmt: skip
_BINARY = {
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
}
CT_IMAGE, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
_LOSSY = {  # transfer syntaxes whose voxels are never those of the scanner
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81",
}  # fmt: skip
_MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class DicomFile:
    """The attributes of one file that bear on geometry and values, and where its voxels are."""

    path: Path
    attributes: dict[str, str | int]
    pixels: Element | None
    frame: int = 0  # of a file with several

    @property
    def what(self) -> str:
        return shown(self.path)

    def text(self, name: str, default: str | None = None) -> str:
        """An attribute as text; `BadInput` when the file lacks it and there is no default."""
        value = str(self.attributes.get(name, "")) or default
        if value is None:
            raise BadInput(self.what, f"lacks the attribute {name}", "export the series again")
        return value

    def numbers(self, name: str, count: int, default: str | None = None) -> np.ndarray:
        """`count` finite numbers of an attribute."""
        text = self.text(name, default)
        try:
            values = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            raise BadInput(self.what, f"{name} is not {count} number(s)", "export the series again")
        return values

    def number(self, name: str, default: str | None = None) -> float:
        """A single number."""
        return float(self.numbers(name, 1, default)[0])


def is_lossy(file: DicomFile) -> bool:
    """Whether its voxels went through a compression that changes them, once at least, by its header or its coding."""
    told = file.text("LossyImageCompression", default="00") == "01"
    return told or file.text("TransferSyntaxUID", default="-") in _LOSSY


def parse(path: Path) -> DicomFile | None:
    """The file's attributes; None when it is no DICOM at all. `BadInput` when it begins as one and breaks off."""
    with opened(path) as stream:
        data = stream.read(_MAX_BYTES)
    if not looks_like_dicom(data[:132]):
        return None
    attributes: dict[str, str | int] = {}
    try:
        data = inflated(data)
        for element in elements(data):
            if element.tag == PIXEL_DATA:
                return DicomFile(path, attributes, element)
            name = _WANTED.get(element.tag)
            if name and element.end > element.start:  # an attribute without a value is not there
                attributes[name] = _decode(name, data[element.start : element.end], attributes)
                if name == "SOPClassUID" and attributes[name] not in (CT_IMAGE, ENHANCED_CT):
                    break  # a structure set, a report: the rest does not matter
    except Damaged as error:
        raise BadInput(shown(path), f"unreadable DICOM: it {error}", "copy or export it again") from error
    return DicomFile(path, attributes, None)


def hounsfield(file: DicomFile) -> np.ndarray:
    """(rows, columns) float32: rescaled values of a file that `parse` accepted and that has voxels."""
    shape = (int(file.number("Rows")), int(file.number("Columns")))
    slope, intercept = file.number("RescaleSlope"), file.number("RescaleIntercept")
    if slope == 0:
        raise BadInput(file.what, "RescaleSlope is 0", "export the series again")
    pixels = file.pixels
    if pixels is None:
        raise BadInput(file.what, "holds no voxels", "export the series again")
    values = _encapsulated(file) if pixels.encapsulated else _native(file, pixels, shape) * slope + intercept
    values = values.astype(np.float32)
    if values.shape != shape:
        raise BadInput(
            file.what, f"decodes to {values.shape} voxels, its header says {shape}", "export the series again"
        )
    if "PixelPaddingValue" in file.attributes:  # declared as no tissue; below the range it is clipped anyway
        padding = file.number("PixelPaddingValue") * slope + intercept
        if padding > 3071:
            values[values == np.float32(padding)] = -1024
    return values


def _native(file: DicomFile, pixels: Element, shape: tuple[int, int]) -> np.ndarray:
    allocated, stored, unused = _bits(file)
    signed = file.number("PixelRepresentation") == 1
    row = shape[1] * allocated // 8
    wanted = shape[0] * row
    length = pixels.end - pixels.start
    if not wanted <= length < wanted + max(row, 2):  # some writers leave a few bytes behind the last row
        raise BadInput(
            file.what, f"holds {length} bytes of voxels, its header says {wanted}", "copy or export it again"
        )
    order = ">" if file.text("TransferSyntaxUID", default="-") == BIG_ENDIAN else "<"
    with opened(file.path) as stream:
        if file.text("TransferSyntaxUID", default="-") == DEFLATED:
            raw = inflated(stream.read())[pixels.start : pixels.start + wanted]
        else:
            stream.seek(pixels.start)
            raw = stream.read(wanted)
    kind = "i" if signed else "u"
    words = np.frombuffer(raw, f"{order}{kind}{allocated // 8}").reshape(shape)
    if stored == allocated:
        return words
    if not signed:
        return words >> unused & ((1 << stored) - 1)
    spare = 64 - stored  # bits above the stored ones may hold overlays: out with them, and the sign back down
    return words.astype(np.int64) << (spare - unused) >> spare


def _bits(file: DicomFile) -> tuple[int, int, int]:
    """(bits allocated, of them stored, unused ones below those): left-justified voxels leave the low ones free."""
    allocated, stored = int(file.number("BitsAllocated")), int(file.number("BitsStored"))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise BadInput(file.what, f"{stored} of {allocated} bits per voxel", "convert it to 16 bits")
    high = int(file.number("HighBit", default=str(stored - 1)))
    if not stored - 1 <= high < allocated:
        wrong = f"{stored} bits of {allocated} cannot end in bit {high} (HighBit)"
        raise BadInput(file.what, wrong, "export the series again")
    return allocated, stored, high + 1 - stored


def _encapsulated(file: DicomFile) -> np.ndarray:
    """Through GDCM, one file at a time: its series reader keeps the first file's scale for all."""
    if _bits(file)[2]:
        raise BadInput(file.what, "its compressed voxels are left-justified (HighBit)", "export it uncompressed")
    try:
        image = _decoded(str(file.path))
    except RuntimeError as error:
        raise BadInput(file.what, "its compressed voxels cannot be decoded", "export it uncompressed") from error
    return sitk.GetArrayFromImage(image)[file.frame]


@lru_cache(maxsize=1)
def _decoded(path: str) -> sitk.Image:
    """All frames of a file, which are asked for one after the other."""
    return sitk.ReadImage(path, sitk.sitkFloat64, imageIO="GDCMImageIO")


def _decode(name: str, raw: bytes, attributes: dict) -> str | int:
    if name not in _BINARY:
        return raw.decode("ascii", "replace").strip(" \0")
    order = ">" if attributes.get("TransferSyntaxUID") == BIG_ENDIAN else "<"
    signed = name == "PixelPaddingValue" and attributes.get("PixelRepresentation") == 1
    if len(raw) != 2:
        raise Damaged(f"has a {name} of {len(raw)} bytes")
    return struct.unpack(order + ("h" if signed else "H"), raw)[0]
