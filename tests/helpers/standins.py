"""Stand-ins of the public data sets: their layout, file names, label values and stored grey values, tiny chests inside.

What a reader downloads looks like this (converters: `covidseg/data/datasets/`). Every scan is `volumes.small_chest`
with another noise and another lesion, so a data set is written in a second.
"""

import json
from pathlib import Path

import numpy as np

from volumes import Make, small_chest, write_volume

CORONA = [f"coronacases_{k:03d}" for k in range(1, 11)]
RADIO = [
    f"radiopaedia_{name}"
    for name in (
        "4_85506_1", "7_85703_0", "10_85902_1", "10_85902_3", "14_85914_0",
        "27_86410_0", "29_86490_1", "29_86491_1", "36_86526_0", "40_86625_0",
    )
]  # fmt: skip
STUB = b"\0\5\26\7\0\2\0\0Mac OS X        "  # what a Mac packs beside each file


def covid19_ct_seg(root: Path) -> Path:
    """20 scans; one half int16 HU, the other 0..255 of [-1250, 250]; 1 left lung, 2 right lung, 3 infection."""
    for seed, name in enumerate(CORONA + RADIO):
        hu, labels = small_chest(seed)
        scan = hu if name in CORONA else np.rint((np.clip(hu, -1250, 250) + 1250) / 1500 * 255).astype(np.uint8)
        sided = _sided(labels)
        masks = {
            "Lung_and_Infection_Mask": np.where(labels == 2, 3, sided),
            "Lung_Mask": sided,
            "Infection_Mask": labels == 2,
        }
        write_volume(root / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", scan)
        for folder, mask in masks.items():
            write_volume(root / folder / f"{name}.nii.gz", mask.astype(np.uint8))
    for folder in ("COVID-19-CT-Seg_20cases", "Lung_and_Infection_Mask"):
        (root / folder / f"._{CORONA[0]}.nii.gz").write_bytes(STUB)
    return root


def mosmed(root: Path, count: int = 8) -> Path:
    """`studies/CT-0..4`, of which those of CT-1 that are numbered from 255 on have a mask of the lesions."""
    for seed in range(count):
        hu, labels = small_chest(seed)
        write_volume(root / f"studies/CT-1/study_{255 + seed:04d}.nii.gz", hu)
        write_volume(root / f"masks/study_{255 + seed:04d}_mask.nii.gz", (labels == 2).astype(np.uint8))
    for severity, number in ((0, 1), (1, 305), (2, 939), (3, 1064), (4, 1109)):
        write_volume(root / f"studies/CT-{severity}/study_{number:04d}.nii.gz", small_chest(number, severity > 0)[0])
    return root


def covid19_20(root: Path) -> Path:
    """`Train/<id>_ct.nii.gz` with `<id>_seg.nii.gz`; int16 and float64, strange extremes, two scans of one patient."""
    numbers = ("0003", "0011", "0016", "0034_0", "0034_1", "0050", "0106", "0247")
    for seed, number in enumerate(numbers):
        hu, labels = small_chest(seed)
        hu = hu.astype(np.float64 if seed % 4 == 1 else np.int16)
        if seed == 2:
            hu[0, 0, :2] = -10380, 32737  # the extremes of the published scans
        write_volume(root / f"Train/volume-covid19-A-{number}_ct.nii.gz", hu)
        write_volume(root / f"Train/volume-covid19-A-{number}_seg.nii.gz", (labels == 2).astype(np.uint8))
    write_volume(root / "Validation/volume-covid19-A-0002_ct.nii.gz", small_chest(50)[0])
    return root


def nnunet(root: Path) -> Path:
    """`imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and dataset.json; one test image without its labels."""
    names = {"Tr": [f"chest_{k:03d}" for k in range(8)], "Ts": ["chest_100", "chest_101", "chest_102"]}
    for part, cases in names.items():
        for seed, case in enumerate(cases):
            hu, labels = small_chest(seed + 100 * (part == "Ts"))
            write_volume(root / f"images{part}/{case}_0000.nii.gz", hu)
            if case != "chest_102":
                write_volume(root / f"labels{part}/{case}.nii.gz", labels)
    declared = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "lung": 1, "infection": 2},
        "numTraining": len(names["Tr"]),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def folder(root: Path, count: int = 10, table: bool = True) -> Path:
    """images/, lesions/, lungs/ of equal names in several formats, one DICOM folder; `table`: with a cases.csv."""
    endings = [".nii.gz", ".mha", ".nrrd"]
    rows = ["case,patient,site,split"]
    for seed in range(count):
        hu, labels = small_chest(seed)
        name, ending = f"scan_{seed:02d}", endings[seed % 3]
        if seed == count - 1:
            _dicom(root / "images" / name, hu)
        else:
            write_volume(root / "images" / f"{name}{ending}", hu)
        write_volume(root / "lesions" / f"{name}.nii.gz", (labels == 2).astype(np.uint8))
        write_volume(root / "lungs" / f"{name}.nii.gz", _sided(labels))
        rows.append(f"{name},p{max(seed, 1)},{'Essen' if seed % 4 == 3 else 'Bonn'},")
    if table:
        (root / "cases.csv").write_text("\n".join(rows) + "\n")
    return root


def eight_bit(root: Path, count: int = 6) -> Path:
    """images/ of grey values from 0 to 255, as teaching sets have them, and lesions/."""
    for seed in range(count):
        hu, labels = small_chest(seed)
        grey = np.clip((hu.astype(np.float32) + 1024) * 255 / 1324, 0, 255).astype(np.uint8)
        write_volume(root / "images" / f"corona_{seed:02d}.nii.gz", grey)
        write_volume(root / "lesions" / f"corona_{seed:02d}.nii.gz", (labels == 2).astype(np.uint8))
    return root


def scan(path: Path, seed: int = 60) -> Path:
    """One scan without masks, in the format of its name; a folder of DICOM slices for a name without ending."""
    hu, _ = small_chest(seed)
    if "." in path.name:
        write_volume(path, hu)
    else:
        _dicom(path, hu)
    return path


def scans(root: Path) -> Path:
    """Three scans to be segmented, one of them a DICOM folder."""
    for seed, name in enumerate(("one.nii.gz", "two.mha", "three")):
        scan(root / name, 60 + seed)
    return root


def _sided(labels: np.ndarray) -> np.ndarray:
    """Lung with its lesions: 1 where it is left, 2 right. Columns grow towards the patient's left."""
    left = np.arange(labels.shape[2]) >= labels.shape[2] // 2
    return (np.where(left, 1, 2) * (labels > 0)).astype(np.uint8)


def _dicom(path: Path, hu: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Make.dicom(path, hu, Make.geometry(hu.shape, spacing_xyz=(9.0, 9.0, 8.0), origin_xyz=(-100.0, 50.0, 7.5)))
