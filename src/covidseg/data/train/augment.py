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
    """Applies `change` to the samples that the draw hits, and leaves the others.

    `moves`: whether it changes where things are, and so the mask.
    """

    moves = False

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} is not in [0, 1]")
        self.probability = probability

    def __call__(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        hit = (torch.rand(len(image), generator=rng) < self.probability).nonzero().flatten()
        if len(hit) == 0:
            return image, mask
        if len(hit) == len(image):
            return self.change(image, mask, rng)
        hit = _sent(hit, image)
        own = mask[hit] if self.moves else mask  # a mask that stays as it is needs no copies
        changed_image, changed_mask = self.change(image[hit], own, rng)
        image = image.index_copy(0, hit, changed_image)
        return image, mask.index_copy(0, hit, changed_mask) if self.moves else mask

    def surely(self) -> "Transform":
        """The same transform for every sample."""
        certain = copy(self)
        certain.probability = 1.0
        return certain

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """New image and mask of the hit samples, the inputs as they were; values outside [0, 1] are clipped here."""
        raise NotImplementedError


class Mirror(Transform):
    """Flips along each of `axes` (0 z, 1 y, 2 x) with its own draw."""

    moves = True

    def __init__(self, probability: float, axes: Sequence[int]):
        super().__init__(probability)
        self.axes = tuple(axes)

    def __call__(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        for axis in self.axes:
            drawn = torch.rand(len(image), generator=rng) < self.probability
            if drawn.all():
                image, mask = image.flip(2 + axis), mask.flip(2 + axis)
            elif drawn.any():
                flip = _sent(drawn, image).view(-1, 1, 1, 1, 1)
                image = torch.where(flip, image.flip(2 + axis), image)
                mask = torch.where(flip, mask.flip(2 + axis), mask)
        return image, mask


class Spatial(Transform):
    """Rotation, isotropic scaling and elastic displacement in one sampling grid, so that the image is read once.

    Rotation and scaling act in millimetres (`spacing_zyx`), about the centre of the patch. The displacement is linear
    between `elastic_grid` control points, each moved by up to `elastic_voxels`. Linear for the image, nearest for the
    mask; what lies outside the patch is its mirror image.
    """

    moves = True

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
        sigma = _uniform(rng, self.sigma_voxels, len(image))
        reach = math.ceil(3 * float(sigma.max()))
        taps = torch.exp(-0.5 * (torch.arange(reach + 1) / sigma.view(-1, 1)) ** 2)  # (n, reach + 1), outwards
        taps = taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))
        weights = _sent(taps.to(image.dtype), image).view(len(image), 1, 1, 1, 1, -1)
        for axis in (2, 3, 4):  # sums of shifted volumes: torch's convolution of one channel is several times slower
            padding = [0] * 6
            padding[8 - 2 * axis : 10 - 2 * axis] = [reach, reach]
            padded, size = F.pad(image, padding, "replicate"), image.shape[axis]
            image = padded.narrow(axis, reach, size) * weights[..., 0]
            for k in range(1, reach + 1):
                both = padded.narrow(axis, reach - k, size) + padded.narrow(axis, reach + k, size)
                image.addcmul_(both, weights[..., k])
        return image, mask


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
        return noise.mul_(sd).add_(image).clamp_(0, 1), mask


class Intensity(Transform):
    """Contrast about the patch's mean by a factor from `contrast`, and a constant from `shift` added."""

    def __init__(self, probability: float, shift: Sequence[float], contrast: Sequence[float]):
        super().__init__(probability)
        self.shift, self.contrast = tuple(shift), tuple(contrast)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        contrast = _per_sample(_uniform(rng, self.contrast, len(image)), image)
        shift = _per_sample(_uniform(rng, self.shift, len(image)), image)
        mean = image.mean(dim=(1, 2, 3, 4), keepdim=True)
        return torch.addcmul(mean * (1 - contrast) + shift, image, contrast).clamp_(0, 1), mask


class Gamma(Transform):
    """Raises the image to a power from `exponent` (low, high)."""

    def __init__(self, probability: float, exponent: Sequence[float]):
        super().__init__(probability)
        self.exponent = tuple(exponent)

    def change(self, image: Tensor, mask: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        exponent = _per_sample(_uniform(rng, self.exponent, len(image)), image)
        return image.pow(exponent).clamp_(0, 1), mask


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
