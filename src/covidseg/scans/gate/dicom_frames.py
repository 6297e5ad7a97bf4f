"""Enhanced CT: one DICOM file with all slices of a series, told apart by functional groups (PS3.3 C.7.6.16)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from covidseg.scans.gate.dicom_elements import Element
from covidseg.scans.gate.dicom_file import CT_IMAGE, ENHANCED_CT, DicomFile
from covidseg.system.errors import BadInput

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = {  # of a functional group: what of it bears on geometry and values
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope"),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def frames(file: DicomFile) -> list[DicomFile]:
    """The slices of an enhanced CT file, each as if it were a file of its own; any other file is its one slice.

    Raises `BadInput` where the groups do not fit the frames.
    """
    if file.text("SOPClassUID", default="") != ENHANCED_CT:
        return [file]
    if file.pixels is None:
        raise BadInput(file.what, "unreadable: it has no voxels", "copy or export it again")
    count = int(file.number("NumberOfFrames"))
    groups = list(_groups(file))
    if count < 1 or len(groups) != count:
        wrong = f"has {count} frames and functional groups for {len(groups)}"
        raise BadInput(file.what, wrong, "export the series again")
    scales = {(group.get("RescaleSlope"), group.get("RescaleIntercept")) for group in groups}
    if file.pixels.encapsulated and len(scales) > 1:  # GDCM takes the first one's for all
        raise BadInput(file.what, "its compressed frames have different rescalings", "export it uncompressed")
    own = {name: value for name, value in file.attributes.items() if name != "NumberOfFrames"}
    made = []
    for number, (group, pixels) in enumerate(zip(groups, _pixels(file, file.pixels, count), strict=True)):
        attributes = own | group | {"SOPClassUID": CT_IMAGE, "InstanceNumber": str(number + 1)}
        made.append(replace(file, attributes=attributes, pixels=pixels, frame=number))
    return made


def _groups(file: DicomFile) -> Iterator[dict[str, str | int]]:
    """The attributes of each frame: its own functional groups on top of those that all share."""
    import pydicom  # a third of a second of import, for this kind of file alone

    try:
        read = pydicom.dcmread(file.path, force=True, stop_before_pixels=True, specific_tags=list(_GROUPS))
        shared, each = (read.get(name) or [] for name in _GROUPS)
        common = _attributes(shared[0]) if shared else {}
        yield from ({**common, **_attributes(item)} for item in each)
    except (OSError, ValueError, AttributeError, TypeError, IndexError, KeyError, NotImplementedError) as error:
        raise BadInput(file.what, "its functional groups cannot be read", "export the series again") from error


def _attributes(group: Mapping[Any, Any]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for macro, names in _MACROS.items():
        for item in (group.get(macro) or [])[:1]:
            for name in names:
                if (value := item.get(name)) is not None:
                    found["ImageType" if name == "FrameType" else name] = _text(value)
    return found


def _text(value: Any) -> str:
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    return "\\".join(map(str, value)) if several else str(value)


def _pixels(file: DicomFile, pixels: Element, count: int) -> list[Element]:
    """Where each frame's voxels are; compressed ones are found by GDCM."""
    if pixels.encapsulated:
        return [pixels] * count
    size = int(file.number("Rows")) * int(file.number("Columns")) * int(file.number("BitsAllocated")) // 8
    if not size * count <= pixels.end - pixels.start <= size * count + 1:
        wrong = f"holds {pixels.end - pixels.start} bytes of voxels, its header says {size * count}"
        raise BadInput(file.what, wrong, "copy or export it again")
    starts = [pixels.start + size * number for number in range(count)]
    return [Element(pixels.tag, start, start + size, encapsulated=False) for start in starts]
