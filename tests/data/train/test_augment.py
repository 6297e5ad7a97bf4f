import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from monai.transforms import AdjustContrast, Affine
from scipy import ndimage

from covidseg.config.build import instantiate
from covidseg.config.paths import CONF
from covidseg.data.train.augment import Augment, Blur, Gamma, Intensity, Mirror, Noise, Spatial


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def volume(batch=2, shape=(9, 12, 15), seed=0):
    """A smooth image in [0, 1] and a mask of three labels, (B, 1, D, H, W)."""
    noise = np.random.default_rng(seed).random((batch, *shape))
    smooth = np.stack([ndimage.gaussian_filter(part, 1.5) for part in noise])
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    image = torch.tensor(smooth[:, None], dtype=torch.float32)
    return image, (image * 2.999).to(torch.uint8)


def spatial(rotation=(0, 0, 0), scale=(1, 1), elastic=0.0, spacing=(1, 1, 1), probability=1.0):
    return Spatial(probability, spacing, rotation, scale, elastic, (4, 5, 5))


def test_no_transform_is_the_identity():
    image, mask = volume()
    same_image, same_mask = Augment()(image, mask, rng())
    assert same_image is image and same_mask is mask


def test_mirror_flips_image_and_mask_of_some_samples_together():
    image, mask = volume(batch=8)
    flipped, labels = Mirror(0.5, [2])(image, mask, rng())
    hits = [not torch.equal(a, b) for a, b in zip(flipped, image, strict=True)]
    assert 0 < sum(hits) < 8
    for n, hit in enumerate(hits):
        assert torch.equal(flipped[n], image[n].flip(3) if hit else image[n])
        assert torch.equal(labels[n], mask[n].flip(3) if hit else mask[n])


def test_spatial_without_any_change_is_the_identity():
    image, mask = volume()
    same, labels = spatial()(image, mask, rng())
    torch.testing.assert_close(same, image, atol=1e-5, rtol=0)
    assert torch.equal(labels, mask)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.5, 1.5)])
def test_rotation_and_scale_agree_with_scipy_in_millimetres(spacing):
    image, _ = volume(batch=1, shape=(20, 22, 24))
    transform = spatial(spacing=spacing)
    angle, factor = 0.3, 1.15
    grid = transform.grid(image, torch.tensor([[angle, 0.0, 0.0]]), torch.tensor([factor]), torch.zeros(1, 3, 4, 5, 5))
    ours = torch.nn.functional.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)[0, 0].numpy()

    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) / factor
    to_mm = np.diag(spacing)  # z, y, x; a turn about x takes y to z
    matrix = np.linalg.inv(to_mm) @ turn @ to_mm
    centre = (np.array(image.shape[2:]) - 1) / 2
    expected = ndimage.affine_transform(image[0, 0].numpy(), matrix, centre - matrix @ centre, order=1)
    inner = np.s_[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(ours[inner], expected[inner], atol=1e-4)


def test_rotation_about_z_agrees_with_monai():
    image, _ = volume(batch=1, shape=(8, 24, 24))
    transform = spatial()
    angle = 0.4
    grid = transform.grid(image, torch.tensor([[0.0, 0.0, angle]]), torch.ones(1), torch.zeros(1, 3, 4, 5, 5))
    ours = torch.nn.functional.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)
    theirs, _ = Affine(rotate_params=(angle, 0.0, 0.0), padding_mode="reflection", image_only=False)(image[0])
    mirrored, _ = Affine(rotate_params=(-angle, 0.0, 0.0), padding_mode="reflection", image_only=False)(image[0])
    inner = np.s_[0, :, 7:-7, 7:-7]
    error = min(float((ours[0][inner] - torch.as_tensor(m)[inner]).abs().max()) for m in (theirs, mirrored))
    assert error < 1e-4  # the sign of an angle is a convention


def test_elastic_displacement_moves_by_what_the_control_points_say():
    image, _ = volume(batch=1, shape=(16, 16, 16))
    shifts = torch.zeros(1, 3, 4, 5, 5)
    shifts[:, 1] = 2.0  # every point two voxels along y
    grid = spatial(elastic=2.0).grid(image, torch.zeros(1, 3), torch.ones(1), shifts)
    moved = torch.nn.functional.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)
    torch.testing.assert_close(moved[..., :-3, :], image.roll(-2, dims=3)[..., :-3, :], atol=1e-4, rtol=0)


def test_masks_keep_their_labels_and_follow_the_image():
    image, mask = volume(batch=4, shape=(16, 20, 20))
    moved, labels = spatial(rotation=(15, 5, 5), scale=(0.8, 1.25), elastic=3.0)(image, mask, rng())
    assert labels.dtype == torch.uint8 and set(labels.unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(labels, mask)
    agreement = ((moved * 2.999).to(torch.uint8) == labels).float().mean()  # the mask was made from the image
    assert agreement > 0.8


def test_blur_agrees_with_scipy():
    image, mask = volume(batch=2, shape=(14, 14, 14))
    blurred, same = Blur(1.0, [1.0, 1.0])(image, mask, rng())
    assert torch.equal(same, mask)
    for n in (0, 1):
        expected = ndimage.gaussian_filter(image[n, 0].numpy(), 1.0, mode="nearest", truncate=3.0)
        np.testing.assert_allclose(blurred[n, 0].numpy(), expected, atol=1e-5)


def test_gamma_agrees_with_monai():
    image, mask = volume(batch=1)
    image = (image - image.min()) / (image.max() - image.min())  # MONAI scales to the range it finds
    ours, _ = Gamma(1.0, [1.3, 1.3])(image, mask, rng())
    torch.testing.assert_close(ours[0], torch.as_tensor(AdjustContrast(1.3)(image[0])), atol=1e-4, rtol=0)


def test_noise_has_the_standard_deviation_asked_for():
    image = torch.full((1, 1, 30, 30, 30), 0.5)
    noisy, _ = Noise(1.0, [0.05, 0.05])(image, image.byte(), rng())
    assert abs(float(noisy.std()) - 0.05) < 0.002 and abs(float(noisy.mean()) - 0.5) < 0.002


def test_intensity_keeps_the_mean_but_for_the_shift():
    image, mask = volume(batch=1)
    image = 0.4 + 0.2 * image
    changed, _ = Intensity(1.0, shift=[0.1, 0.1], contrast=[0.5, 0.5])(image, mask, rng())
    torch.testing.assert_close(changed, (image - image.mean()) * 0.5 + image.mean() + 0.1)


def test_the_strong_preset_is_a_function_of_the_generator_and_leaves_its_input_alone():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["recipe=strong"])
    augment = instantiate(cfg.augment, "augment")
    image, mask = volume(batch=6, shape=(16, 16, 16))
    kept = image.clone(), mask.clone()
    once, again, other = (augment(image, mask, rng(seed)) for seed in (5, 5, 6))
    assert all(map(torch.equal, once, again)) and not torch.equal(once[0], other[0])
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1])
    assert float(once[0].min()) >= 0 and float(once[0].max()) <= 1 and once[0].shape == image.shape


def test_probability_zero_touches_nothing():
    image, mask = volume()
    for transform in (spatial(elastic=3.0, probability=0.0), Noise(0.0, [1, 1]), Mirror(0.0, [0, 1, 2])):
        changed, labels = transform(image, mask, rng())
        assert torch.equal(changed, image) and torch.equal(labels, mask)


def test_of_a_batch_only_the_hit_samples_change_and_their_masks_with_them():
    image, mask = volume(batch=8)
    for transform in (spatial(scale=(1.4, 1.4), probability=0.5), Mirror(0.5, [1])):
        changed, labels = transform(image, mask, rng())
        hits = [not torch.equal(a, b) for a, b in zip(changed, image, strict=True)]
        assert 0 < sum(hits) < 8
        assert hits == [not torch.equal(a, b) for a, b in zip(labels, mask, strict=True)]
    changed, labels = Gamma(0.5, [2.0, 2.0])(image, mask, rng())
    assert 0 < sum(not torch.equal(a, b) for a, b in zip(changed, image, strict=True)) < 8
    assert torch.equal(labels, mask)
