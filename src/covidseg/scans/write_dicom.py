"""A mask as DICOM SEG, which archives file with the scan: it refers to the scan's slices and repeats their patient."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.scans.gate.names import shown
from covidseg.scans.segments import COLOURS, OTHER_COLOUR
from covidseg.system.errors import BadInput, EnvironmentFault

_MAY_BE_EMPTY = (  # of type 2: a SEG repeats them, and takes them empty where an export left them out
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_SERIES_NUMBER = 900  # beside what scanners and reconstructions number


def require_highdicom() -> Any:
    """The library; `EnvironmentFault` where it is not installed."""
    try:
        import highdicom.seg
    except ImportError as error:
        remedy = "python -m pip install -c constraints.txt 'covidseg[dicom]', or choose another extension"
        raise EnvironmentFault("highdicom", "writes DICOM SEG and is not installed", remedy) from error
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells each attribute it copies, with the study's UID
    return highdicom


def write(
    path: Path, what: str, mask: np.ndarray, names: Mapping[int, str], slices: Sequence[tuple[Path, int]]
) -> None:
    """Write labels (z, y, x), one binary segment for each of `names`, on the (file, frame) of each slice.

    Raises `BadInput` where there are no slices, or where their headers lack what a DICOM SEG must repeat.
    """
    highdicom = require_highdicom()
    if len(slices) != len(mask):
        remedy = "take .seg.nrrd or .nii.gz, or give the DICOM series"
        raise BadInput(what, "is of a scan that does not come from DICOM slices", remedy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # among them some that quote the patient's name
        _segmentation(highdicom, what, mask, names, slices).save_as(path)


def _segmentation(
    highdicom: Any, what: str, mask: np.ndarray, names: Mapping[int, str], slices: Sequence[tuple[Path, int]]
) -> Any:
    sources = _headers(slices)
    order = np.argsort([frame for _, frame in slices]) if len(sources) == 1 else np.arange(len(slices))
    pixels = np.stack([mask == value for value in names], axis=-1)[order].astype(np.uint8)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_described(highdicom, number, name) for number, name in enumerate(names.values(), 1)],
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="covidseg",
            manufacturer_model_name="covidseg",
            software_versions=version("covidseg"),
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=", ".join(names.values())[:64],
            omit_empty_frames=bool(pixels.any()),  # a SEG holds at least one frame
        )
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        lacks = (
            " ".join(str(error).split())[:120] if isinstance(error, AttributeError) else "a value that DICOM refuses"
        )
        wrong = f"cannot refer to the scan: {lacks}"  # other errors may quote what is in the header
        raise BadInput(what, wrong, "take .seg.nrrd or .nii.gz, or export the scan with its whole header") from error
    segmentation.SeriesDescription = f"covidseg: {', '.join(names.values())}"[:64]
    return segmentation


def _headers(slices: Sequence[tuple[Path, int]]) -> list[Any]:
    """The headers of the slices' files, without their voxels: one for each slice, or the one that holds them all."""
    import pydicom

    files = list(dict.fromkeys(file for file, _ in slices))
    headers = []
    for file in files:
        try:
            header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            for keyword in _MAY_BE_EMPTY:
                if keyword not in header:
                    setattr(header, keyword, None)
            headers.append(header)
        except (OSError, ValueError, AttributeError) as error:
            raise BadInput(shown(file), "its header cannot be read", "export the series again") from error
    return headers


def _described(highdicom: Any, number: int, name: str) -> Any:
    from pydicom.sr.codedict import codes

    abnormal = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, [codes.SCT.Lung])
    coded = {"lesion": abnormal, "lung": (codes.SCT.AnatomicalStructure, codes.SCT.Lung, None)}
    category, kind, region = coded.get(name, (codes.SCT.AnatomicalStructure, codes.SCT.Tissue, None))
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        anatomic_regions=region,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="covidseg", version=version("covidseg"), family=codes.DCM.ArtificialIntelligence
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*COLOURS.get(name, OTHER_COLOUR)),
    )
