"""The cases of a prepared data set as nnU-Net's raw folder: HU as read, lesions as stored, on the scans' own grids."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from covidseg.data.datasets import Source
from covidseg.data.store import LABELS, PreparedDataset
from covidseg.scans.read import read_scan
from covidseg.scans.write import to_sitk
from covidseg.system.files import atomic_path, write_json

NAME = "Dataset001_versus"


def export(dataset: PreparedDataset, sources: Iterable[Source], structure: str, folder: Path) -> Path:
    """Write what is missing; returns the data set's folder, `<folder>/Dataset001_versus`."""
    root = folder / NAME
    by_id: Mapping[str, Source] = {source.id: source for source in sources}
    for case in dataset.cases.values():
        if structure not in case.annotated:
            continue
        image, label = root / "imagesTr" / f"{case.id}_0000.nii.gz", root / "labelsTr" / f"{case.id}.nii.gz"
        if image.exists() and label.exists():
            continue
        source = by_id[case.id]
        scan = read_scan(source.image, assume=source.assume, series=source.series, option=source.option, recursive=True)
        reference = case.reference()
        mask = reference == LABELS[structure] if structure == "lesion" else reference > 0
        for path, voxels in ((image, scan.voxels.astype(np.int16)), (label, mask.astype(np.uint8))):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path, suffix=".nii.gz") as temporary:
                sitk.WriteImage(to_sitk(voxels, scan.geometry), str(temporary), useCompression=True)
    count = len(list((root / "labelsTr").glob("*.nii.gz")))
    write_json(root / "dataset.json", _description(structure, count))
    return root


def _description(structure: str, count: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, structure: 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
