"""The suite `prepare`: from a compressed NIfTI scan with two masks to resampled arrays, cropped to the body."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from covidseg.benchmark.contest import OURS, USUAL, Contender, Contest
from covidseg.benchmark.scans import enlarged, scans, write_nifti
from covidseg.data.datasets import Mask, Source
from covidseg.data.prepare.case import CaseRequest, build_case
from covidseg.data.store import LABELS
from covidseg.system.files import sha256

_SPACING = (2.5, 1.5, 1.5)  # mm, z y x
_NAMES = ("image", "lungs", "lesions")


def contests(cfg: DictConfig) -> list[Contest]:
    """One, of all who prepare."""
    options = cfg.prepare_suite
    folder = Path(cfg.output) / "scans"
    (scan,) = scans(folder, cfg.loader.shape_zyx, 1)
    image, labels, spacing = enlarged(scan, options.shape_zyx)
    place = folder / f"nifti-{'x'.join(map(str, options.shape_zyx))}"
    files = {name: place / f"{name}.nii.gz" for name in _NAMES}
    for name, array in zip(_NAMES, (image, (labels > 0).astype(np.uint8), (labels == 2).astype(np.uint8)), strict=True):
        write_nifti(files[name], array, spacing)
    out = Path(cfg.output) / "prepared"
    ways = [
        Contender("covidseg (checked and hashed, too)", OURS, lambda: lambda: _ours(files, out)),
        Contender("MONAI transforms", USUAL, lambda: _monai(files, out)),
        Contender("nnU-Net's resampling alone", USUAL, lambda: _nnunet(image, labels, spacing)),
    ]
    z, y, x = options.shape_zyx
    return [Contest(f"prepare: a scan of {x} x {y} x {z} with two masks", ways, 1, options.rounds)]


def _ours(files: dict[str, Path], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    masks = Mask(files["lungs"], {1: LABELS["lung"]}), Mask(files["lesions"], {1: LABELS["lesion"]})
    source = Source("case", files["image"], masks)
    digests = {path.name: sha256(path) for path in files.values()}
    build_case(CaseRequest(source, digests, "benchmark", _SPACING, 2000, False, out))


def _monai(files: dict[str, Path], out: Path) -> Callable[[], None]:
    from monai import transforms as mt

    keys = list(_NAMES)
    steps = mt.Compose([
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd(keys),
        mt.Orientationd(keys, "RAS", labels=None),
        mt.Spacingd(keys, _SPACING[::-1], mode=("bilinear", "nearest", "nearest")),
        mt.CropForegroundd(keys, source_key="image", select_fn=lambda image: image > -500, margin=5),
    ])  # fmt: skip

    def run() -> None:
        found = steps({name: str(path) for name, path in files.items()})
        out.mkdir(parents=True, exist_ok=True)
        np.save(out / "monai-image.npy", found["image"].numpy().astype(np.int16))
        np.save(out / "monai-mask.npy", (found["lungs"] + found["lesions"]).numpy().astype(np.uint8))

    return run


def _nnunet(image: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> Callable[[], None]:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    new = [round(n * now / wanted) for n, now, wanted in zip(image.shape, spacing, _SPACING, strict=True)]

    def run() -> None:
        both = (image.astype(np.float32), False), (labels.astype(np.int8), True)
        for array, is_mask in both:
            order = 1 if is_mask else 3
            resample_data_or_seg_to_shape(array[None], new, spacing, _SPACING, is_mask, order, 0, None)

    return run
