"""DICOM objects that hold masks: segmentations (SEG) and radiotherapy structure sets (RTSTRUCT)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covidseg.scans.gate.dicom_elements import PIXEL_DATA, Damaged, elements, inflated, looks_like_dicom
from covidseg.scans.gate.names import is_litter, kind, listing, opened, shown
from covidseg.system.errors import BadInput, CovidSegError

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_NAMES = {SEGMENTATION: "DICOM SEG", LABEL_MAP: "DICOM SEG", STRUCTURE_SET: "RTSTRUCT"}


def is_dicom_mask(path: Path) -> bool:
    """Whether a path can only be that of a DICOM object: a folder, or a file called so or that begins so."""
    if kind(path) == "folder" or path.name.lower().endswith(".dcm"):
        return True
    with opened(path) as stream:
        return looks_like_dicom(stream.read(132))


def object_file(path: Path) -> Path:
    """The file at `path`, or the one DICOM object with a mask in that folder. `BadInput` where it is not one."""
    if kind(path) == "file":
        return path
    found = [file for file in _files(path) if sop_class_of(file) in _NAMES]
    if len(found) == 1:
        return found[0]
    listed = f": {', '.join(file.name for file in found[:5])}" if found else ""
    wrong = f"is a folder of {len(found)} DICOM SEG or RTSTRUCT files{listed}"
    raise BadInput(shown(path), wrong, "give a file, or a folder with the one of them that is this case's mask")


def read_object(path: Path, keywords: Sequence[str]) -> tuple[str, Any]:
    """(SOP class, dataset of the attributes `keywords`) of a SEG or RTSTRUCT that is whole.

    What identifies the patient is not decoded. `BadInput` for any other file, and for one that breaks off.
    """
    import pydicom  # a third of a second of import, for this kind of file alone

    what = shown(path)
    with opened(path) as stream:
        data = stream.read()
    if not looks_like_dicom(data[:132]):
        raise BadInput(what, "unreadable: it is no DICOM file", "give a DICOM SEG, an RTSTRUCT or a volume")
    try:
        *_, last = elements(inflated(data))
    except Damaged as error:
        raise BadInput(what, f"unreadable DICOM: it {error}", "copy or export it again") from error
    dataset = pydicom.dcmread(path, force=True, specific_tags=["SOPClassUID", *keywords])
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in _NAMES:
        raise BadInput(what, "is no DICOM SEG or RTSTRUCT", "export the mask as one of these, or as .nii.gz")
    if sop_class != STRUCTURE_SET and last.tag != PIXEL_DATA:
        raise BadInput(what, "unreadable: it has no voxels", "copy or export it again")
    return sop_class, dataset


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """What a decoder makes of nonsense, as one line: bytes that are altered make it raise whatever there is."""
    try:
        yield
    except (CovidSegError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(what, "cannot be decoded", "export it again, uncompressed") from error


def _files(folder: Path) -> Iterator[Path]:
    for path in listing(folder):
        if is_litter(path.name):
            continue
        if kind(path) == "file":
            yield path
        elif not path.is_symlink():  # a link may lead round in a circle
            yield from _files(path)


def sop_class_of(path: Path) -> str:
    """What kind of DICOM object a file is; empty where it is none."""
    import pydicom

    with opened(path) as stream:
        head = stream.read(132)
    if not looks_like_dicom(head):
        return ""
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return str(dataset.get("SOPClassUID", ""))
