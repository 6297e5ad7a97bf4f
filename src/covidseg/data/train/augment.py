"""Augmentation in batches on the device: images float32 (B, 1, D, H, W) in [0, 1], masks uint8 of the same shape.

Every transform meets each sample with its own probability. Parameters come from a CPU generator that the caller seeds
by step and rank, so that a resumed run sees what an uninterrupted one would have seen; what needs a number per voxel
comes from a generator on the device that is seeded from the first. Nothing here waits for the device.
"""

import math
from collections.abc import Sequence
from copy import copy

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


class Augment:
    """The given transforms in the given order; without any, the identity."""

    def __init__(self, **transforms: "Transform"):
        self.transforms = transforms

    def __call__(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """New image and mask. `rng` is a CPU generator; the inputs stay as they are."""
        for transform in self.transforms.values():
            image, mask = transform(image, mask, rng)
        return image, mask


class Transform:
    """Applies `change` to the samples that the draw hits, and leaves the others."""

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} is not in [0, 1]")
        self.probability = probability

    def __call__(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        hit = (torch.rand(len(image), generator=rng) < self.probability).nonzero().flatten()
        if len(hit) == 0:
            return image, mask
        hit = _sent(hit, image)
        changed_image, changed_mask = self.change(image[hit], mask[hit], rng)
        return image.index_copy(0, hit, changed_image), mask.index_copy(0, hit, changed_mask)

    def surely(self) -> "Transform":
        """The same transform for every sample."""
        certain = copy(self)
        certain.probability = 1.0
        return certain

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Image and mask of the hit samples, changed; values outside [0, 1] are clipped here."""
        raise NotImplementedError


class Mirror(Transform):
    """Flips along each of `axes` (0 z, 1 y, 2 x) with its own draw."""

    def __init__(self, probability: float, axes: Sequence[int]):
        super().__init__(probability)
        self.axes = tuple(axes)

    def __call__(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        for axis in self.axes:
            flip = _sent(torch.rand(len(image), generator=rng) < self.probability, image).view(-1, 1, 1, 1, 1)
            image = torch.where(flip, image.flip(2 + axis), image)
            mask = torch.where(flip, mask.flip(2 + axis), mask)
        return image, mask


class Spatial(Transform):
    """Rotation, isotropic scaling and elastic displacement in one sampling grid, so that the image is read once.

    Rotation and scaling act in millimetres (`spacing_zyx`), about the centre of the patch. The displacement is linear
    between `elastic_grid` control points, each moved by up to `elastic_voxels`. Linear for the image, nearest for the
    mask; what lies outside the patch is its mirror image.
    """

    def __init__(
        self,
        probability: float,
        spacing_zyx: Sequence[float],
        rotation_degrees: Sequence[float],
        scale: Sequence[float],
        elastic_voxels: float,
        elastic_grid: Sequence[int],
    ):
        super().__init__(probability)
        self.spacing_xyz = torch.tensor(list(reversed(spacing_zyx)), dtype=torch.float32)
        self.radians_xyz = torch.tensor(list(reversed(rotation_degrees)), dtype=torch.float32).deg2rad()
        self.scale, self.elastic_voxels, self.elastic_grid = tuple(scale), elastic_voxels, tuple(elastic_grid)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        n = len(image)
        angles = _uniform(rng, (-1, 1), n, 3) * self.radians_xyz
        factors = _uniform(rng, (math.log(self.scale[0]), math.log(self.scale[1])), n).exp()
        shifts = _uniform(rng, (-self.elastic_voxels, self.elastic_voxels), n, 3, *self.elastic_grid)
        grid = self.grid(image, angles, factors, shifts)
        sampled = F.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)
        labels = F.grid_sample(mask.float(), grid, "nearest", "reflection", align_corners=False)
        return sampled.clamp_(0, 1), labels.to(mask.dtype)

    def grid(self, image: Tensor, angles: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
        """Where each voxel comes from, (n, D, H, W, 3) in `grid_sample`'s coordinates.

        `angles` (n, 3) in radians about x, y, z; `factors` (n,) larger than 1 enlarge; `shifts` (n, 3, gz, gy, gx) in
        voxels along x, y, z at the control points.
        """
        half = torch.tensor(image.shape[:1:-1]) / 2  # of the patch in voxels, x y z
        to_mm = half * self.spacing_xyz  # grid_sample counts in half patches
        matrix = _rotation(angles) / factors.view(-1, 1, 1)
        matrix = matrix * to_mm / to_mm.view(-1, 1)  # back from mm: row i is divided by to_mm[i]
        theta = _sent(torch.cat([matrix, torch.zeros(len(image), 3, 1)], dim=2), image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        shifts = _sent(shifts / half.view(1, 3, 1, 1, 1), image)
        elastic = F.interpolate(shifts, image.shape[2:], mode="trilinear", align_corners=True)
        return grid + elastic.permute(0, 2, 3, 4, 1)


class Blur(Transform):
    """Gaussian smoothing with a standard deviation from `sigma_voxels` (low, high), the same along each axis."""

    def __init__(self, probability: float, sigma_voxels: Sequence[float]):
        super().__init__(probability)
        self.sigma_voxels = tuple(sigma_voxels)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        n, reach = len(image), math.ceil(3 * self.sigma_voxels[1])
        sigma = _uniform(rng, self.sigma_voxels, n)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma.view(-1, 1)) ** 2)
        taps = _sent((taps / taps.sum(1, keepdim=True)).to(image.dtype), image)  # (n, 2 reach + 1)
        volume = image.transpose(0, 1)  # (1, n, D, H, W): one group a sample
        for axis in range(3):
            shape, padding = [1, 1, 1], [0] * 6
            shape[axis] = -1
            padding[4 - 2 * axis : 6 - 2 * axis] = [reach, reach]
            volume = F.conv3d(F.pad(volume, padding, "replicate"), taps.view(n, 1, *shape), groups=n)
        return volume.transpose(0, 1), mask


class Noise(Transform):
    """White Gaussian noise with a standard deviation from `sd` (low, high), in units of the window's width."""

    def __init__(self, probability: float, sd: Sequence[float]):
        super().__init__(probability)
        self.sd = tuple(sd)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        sd = _per_sample(_uniform(rng, self.sd, len(image)), image)
        seed = int(torch.randint(2**62, (1,), generator=rng))
        voxels = Generator(image.device).manual_seed(seed)
        noise = torch.randn(image.shape, generator=voxels, device=image.device)
        return (image + sd * noise).clamp_(0, 1), mask


class Intensity(Transform):
    """Contrast about the patch's mean by a factor from `contrast`, and a constant from `shift` added."""

    def __init__(self, probability: float, shift: Sequence[float], contrast: Sequence[float]):
        super().__init__(probability)
        self.shift, self.contrast = tuple(shift), tuple(contrast)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        contrast = _per_sample(_uniform(rng, self.contrast, len(image)), image)
        shift = _per_sample(_uniform(rng, self.shift, len(image)), image)
        mean = image.mean(dim=(1, 2, 3, 4), keepdim=True)
        return ((image - mean) * contrast + mean + shift).clamp_(0, 1), mask


class Gamma(Transform):
    """Raises the image to a power from `exponent` (low, high)."""

    def __init__(self, probability: float, exponent: Sequence[float]):
        super().__init__(probability)
        self.exponent = tuple(exponent)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        exponent = _per_sample(_uniform(rng, self.exponent, len(image)), image)
        return image.clamp(0, 1).pow(exponent), mask


def _uniform(rng: Generator, between: Sequence[float], *shape: int) -> Tensor:
    low, high = between
    return low + (high - low) * torch.rand(shape, generator=rng)


def _per_sample(values: Tensor, image: Tensor) -> Tensor:
    return _sent(values.to(image.dtype), image).view(-1, 1, 1, 1, 1)


def _sent(values: Tensor, image: Tensor) -> Tensor:
    """The values on the image's device, without waiting for it: so few are copied before this returns."""
    return values.to(image.device, non_blocking=True)


def _rotation(angles: Tensor) -> Tensor:
    """Rotation matrices (n, 3, 3) in x, y, z: about x first, then y, then z, by `angles` (n, 3)."""
    sin, cos = angles.sin(), angles.cos()
    zero, one = torch.zeros(len(angles)), torch.ones(len(angles))

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    about_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x
