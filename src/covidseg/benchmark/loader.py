"""The suite `loader`: a patch from cases that lie prepared, half of the patches around a lesion."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from covidseg.benchmark.contest import OURS, TUNED, USUAL, Contender, Contest
from covidseg.benchmark.scans import Scan, scans
from covidseg.data.train.loader import PatchLoader
from covidseg.data.train.patches import PatchSampler
from covidseg.scans.geometry import triple

_LESION = 2  # of the stored labels
_FOREVER = 1 << 30


def contests(cfg: DictConfig) -> list[Contest]:
    """One, of all who draw patches."""
    options = cfg.loader
    cases = scans(Path(cfg.output) / "scans", options.shape_zyx, options.cases)
    size, patches = tuple(options.patch_size_zyx), int(options.patches)
    folder, middle = Path(cfg.output) / "nnunet", tuple(n // 2 for n in size)

    def contender(name: str, kind: str, start: Callable[[], Iterator[np.ndarray]]) -> Contender:
        def make() -> Callable[[], list[float]]:
            stream = start()
            return lambda: [float(mask[middle]) for mask in itertools.islice(stream, patches)]

        return Contender(name, kind, make)

    ways = [
        contender("covidseg", OURS, lambda: _ours(cases, size)),
        contender("MONAI CacheDataset", USUAL, lambda: _monai_usual(cases, size)),
        contender("MONAI CacheDataset, no copies, int16", TUNED, lambda: _monai_tuned(cases, size)),
        contender("TorchIO Queue", USUAL, lambda: _torchio(cases, size, patches)),
        contender("nnU-Net loader, no augmentation", USUAL, lambda: _nnunet(cases, size, folder)),
    ]
    z, y, x = size
    return [Contest(f"loader: a patch of {x} x {y} x {z}", ways, patches, options.rounds, _foreground_rates)]


def _foreground_rates(found: Mapping[str, Sequence[float]]) -> str:
    rates = ", ".join(f"{name} {np.mean(hits):.0%}" for name, hits in found.items())
    return f"Patches with a lesion in their middle, of a round: {rates}."


def _ours(cases: Sequence[Scan], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    sampler = PatchSampler(cases, ["lesion"], size, 1, 0.5, seed=0)
    for number, batch in enumerate(PatchLoader(sampler, _FOREVER, threads=2, prefetch=4)):
        if number < 4:  # the voxels are those of the scan
            patch = sampler.patch(number, 0)
            where = tuple(slice(first, first + n) for first, n in zip(patch.start_zyx, size, strict=True))
            assert np.array_equal(batch["image"][0, 0].numpy(), cases[patch.case].image[where])
        yield batch["mask"][0, 0].numpy() == _LESION


def _monai_usual(cases: Sequence[Scan], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    from monai import transforms as mt
    from monai.data import CacheDataset, DataLoader

    keys = ["image", "label"]
    items = [{"image": str(case.folder / "image.npy"), "label": str(case.folder / "mask.npy")} for case in cases]
    steps = mt.Compose([
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd(keys, channel_dim="no_channel"),
        mt.FgBgToIndicesd("label"),
        mt.RandCropByPosNegLabeld(keys, "label", size, fg_indices_key="label_fg_indices",
                                  bg_indices_key="label_bg_indices"),
    ])  # fmt: skip
    loader = DataLoader(CacheDataset(items, steps, progress=False), batch_size=1, shuffle=True, num_workers=0)
    return (batch["label"][0, 0].numpy() == _LESION for batch in _endless(loader))


def _monai_tuned(cases: Sequence[Scan], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Plain int16 tensors in memory, not copied when they are read, lesion voxels as int32."""
    from monai import transforms as mt
    from monai.data import CacheDataset, DataLoader

    items = []
    for case in cases:
        mask = np.array(case.mask)
        lesion = np.flatnonzero(mask == _LESION).astype(np.int32)
        other = np.flatnonzero(mask != _LESION)[::100].astype(np.int32)
        image = torch.from_numpy(np.array(case.image))[None]
        items.append({"image": image, "label": torch.from_numpy(mask)[None], "fg": lesion, "bg": other})
    crop = mt.RandCropByPosNegLabeld(["image", "label"], "label", size, fg_indices_key="fg", bg_indices_key="bg")
    kept = mt.SelectItemsd(["image", "label"])
    dataset = CacheDataset(items, mt.Compose([crop, kept]), progress=False, copy_cache=False)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=0)
    return (batch["label"][0, 0].numpy() == _LESION for batch in _endless(loader))


def _torchio(cases: Sequence[Scan], size: tuple[int, ...], patches: int) -> Iterator[np.ndarray]:
    import torchio as tio

    subjects = [
        tio.Subject(
            image=tio.ScalarImage(tensor=torch.from_numpy(np.array(case.image, np.float32))[None]),
            label=tio.LabelMap(tensor=torch.from_numpy((np.array(case.mask) == _LESION).astype(np.uint8))[None]),
        )
        for case in cases
    ]
    sampler = tio.LabelSampler(triple(size), "label", {0: 0.5, 1: 0.5})
    queue = tio.Queue(tio.SubjectsDataset(subjects), patches, 2, sampler, num_workers=0)
    loader = tio.SubjectsLoader(queue, batch_size=1, num_workers=0)
    return (batch["label"]["data"][0, 0].numpy() > 0 for batch in _endless(loader))


def _nnunet(cases: Sequence[Scan], size: tuple[int, ...], folder: Path) -> Iterator[np.ndarray]:
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        if (folder / f"{case.id}.pkl").exists():
            continue
        mask = np.array(case.mask) == _LESION
        image = np.array(case.image, np.float32)[None]
        voxels = np.argwhere(mask[None])[:: max(1, int(mask.sum()) // 10_000)]
        blocks, chunks = comp_blosc2_params(image.shape, size)
        found, target = {"class_locations": {1: voxels}}, mask[None].astype(np.int8)
        nnUNetDatasetBlosc2.save_case(image, target, found, str(folder / case.id), chunks=chunks, blocks=blocks)
    labels = LabelManager({"background": 0, "lesion": 1}, None)
    data = nnUNetDatasetBlosc2(str(folder))
    loader = nnUNetDataLoader(data, 1, size, size, labels, 0.5, probabilistic_oversampling=True)
    return (np.asarray(next(loader)["target"])[0, 0] > 0 for _ in itertools.repeat(None))


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
