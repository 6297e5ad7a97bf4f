"""The suite `augment`: each transform of one patch in memory, applied for certain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Generator, Tensor

from covidseg.benchmark.contest import OURS, USUAL, Contender, Contest
from covidseg.benchmark.scans import WINDOW, scans
from covidseg.data.train import augment as own
from covidseg.data.train.patches import AIR_HU, crop
from covidseg.inference.window import normalise

_SD = 0.03  # of noise
_GAMMA, _CONTRAST = (0.7, 1.5), (0.8, 1.25)
_SIGMA = (0.4, 1.2)
_ROTATION = (15.0, 5.0, 5.0)  # degrees about z, y, x
_SCALE = (0.8, 1.25)
_ELASTIC, _GRID = 4.0, (4, 5, 5)  # voxels, control points


def contests(cfg: DictConfig) -> list[Contest]:
    """One for each transform that the peers have, too."""
    options = cfg.augment_suite
    (scan,) = scans(Path(cfg.output) / "scans", cfg.loader.shape_zyx, 1)
    size, repeats = tuple(options.patch_size_zyx), int(options.repeats)
    image, mask = torch.empty(size, dtype=torch.int16), torch.empty(size, dtype=torch.uint8)
    start = [(n - m) // 2 for n, m in zip(scan.image.shape, size, strict=True)]
    crop(scan.image, start, image.numpy(), AIR_HU)
    crop(scan.mask, start, mask.numpy(), 0)
    patch = normalise(image, WINDOW)[None]  # (1, D, H, W)
    z, y, x = size

    def contest(name: str, ours: own.Transform, monai: Callable[..., Any], theirs: Callable[..., Any]) -> Contest:
        def make_ours() -> Callable[[], Tensor]:
            rng = Generator().manual_seed(0)
            return lambda: _repeated(repeats, lambda: ours(patch[None], mask[None, None], rng)[0])

        def make_monai() -> Callable[[], Tensor]:
            transform = monai()
            return lambda: _repeated(repeats, lambda: transform(patch, mask[None]))

        def make_theirs() -> Callable[[], Tensor]:
            transform = theirs(size)
            target = mask[None].to(torch.int16)
            given = {"image": patch, "segmentation": target}
            return lambda: _repeated(repeats, lambda: transform(**{key: part.clone() for key, part in given.items()}))

        ways = [
            Contender("covidseg", OURS, make_ours),
            Contender("MONAI", USUAL, make_monai),
            Contender("batchgeneratorsv2 (nnU-Net's)", USUAL, make_theirs),
        ]
        return Contest(f"augment: {name}, {x} x {y} x {z}", ways, repeats, options.rounds)

    return [
        contest("mirror", own.Mirror(1.0, [2]), _monai_mirror, _theirs_mirror),
        contest("noise", own.Noise(1.0, [_SD, _SD]), _monai_noise, _theirs_noise),
        contest("contrast", own.Intensity(1.0, [0.0, 0.0], _CONTRAST), _monai_contrast, _theirs_contrast),
        contest("gamma", own.Gamma(1.0, _GAMMA), _monai_gamma, _theirs_gamma),
        contest("blur", own.Blur(1.0, _SIGMA), _monai_blur, _theirs_blur),
        contest(
            "rotation, scaling, elastic",
            own.Spatial(1.0, (1, 1, 1), _ROTATION, _SCALE, _ELASTIC, _GRID),
            _monai_spatial,
            _theirs_spatial,
        ),
    ]


def _repeated(count: int, work: Callable[[], Any]) -> Any:
    for _ in range(count - 1):
        work()
    return work()


def _monai_mirror() -> Callable[..., Any]:
    from monai.transforms import RandFlip

    flip = RandFlip(prob=1.0, spatial_axis=2)
    return lambda image, mask: (flip(image), flip(mask))


def _monai_noise() -> Callable[..., Any]:
    from monai.transforms import RandGaussianNoise

    noise = RandGaussianNoise(prob=1.0, std=_SD, sample_std=False)
    return lambda image, mask: noise(image)


def _monai_contrast() -> Callable[..., Any]:
    from monai.transforms import RandScaleIntensityFixedMean

    contrast = RandScaleIntensityFixedMean(prob=1.0, factors=(_CONTRAST[0] - 1, _CONTRAST[1] - 1), fixed_mean=True)
    return lambda image, mask: contrast(image)


def _monai_gamma() -> Callable[..., Any]:
    from monai.transforms import RandAdjustContrast

    gamma = RandAdjustContrast(prob=1.0, gamma=_GAMMA)
    return lambda image, mask: gamma(image)


def _monai_blur() -> Callable[..., Any]:
    from monai.transforms import RandGaussianSmooth

    blur = RandGaussianSmooth(_SIGMA, _SIGMA, _SIGMA, prob=1.0)
    return lambda image, mask: blur(image)


def _monai_spatial() -> Callable[..., Any]:
    from monai.transforms import Rand3DElasticd

    turn = [degrees / 57.3 for degrees in _ROTATION]
    move = Rand3DElasticd(
        ["image", "mask"],
        sigma_range=(5, 7),
        magnitude_range=(50, 100),
        prob=1.0,
        rotate_range=turn,
        scale_range=[(_SCALE[0] - 1, _SCALE[1] - 1)] * 3,
        mode=["bilinear", "nearest"],
        padding_mode="reflection",
    )
    return lambda image, mask: move({"image": image, "mask": mask})


def _theirs_mirror(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    return MirrorTransform((2,))


def _theirs_noise(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform

    return GaussianNoiseTransform((_SD, _SD), p_per_channel=1.0, synchronize_channels=True)


def _theirs_contrast(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform

    return ContrastTransform(_CONTRAST, preserve_range=True, synchronize_channels=False, p_per_channel=1.0)


def _theirs_gamma(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform

    return GammaTransform(_GAMMA, 0, False, 1.0, 1.0)


def _theirs_blur(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    return GaussianBlurTransform(_SIGMA, synchronize_channels=False, synchronize_axes=False, p_per_channel=1.0)


def _theirs_spatial(size: tuple[int, ...]) -> Callable[..., Any]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    return SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=1.0,
        elastic_deform_scale=(0.0, 0.2),
        elastic_deform_magnitude=(0.0, 0.2),
        p_rotation=1.0,
        rotation=(-0.26, 0.26),
        p_scaling=1.0,
        scaling=_SCALE,
    )
