import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from covidseg.data.prepare.grid import Grid
from covidseg.evaluation.structures import Structure, Task
from covidseg.inference.window import NonFiniteLogits, WindowInferer, air, normalise, segment_case
from covidseg.scans.geometry import Geometry

LESION = Task("lesion", 2, (0, 0, 1), {"lesion": Structure((1,), (2,), 3.0)})
WINDOW = (-1250, 250)
AIR = air(WINDOW)


class Threshold(nn.Module):
    """Foreground where the normalised image is above a half; the stride and the head can be chosen."""

    def __init__(self, channels=2, stride=4):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.channels, self.stride, self.seen, self.modes = channels, stride, [], []

    def forward(self, x):
        assert all(size % step == 0 for size, step in zip(x.shape[2:], np.broadcast_to(self.stride, 3), strict=True))
        self.seen.append(tuple(x.shape))
        self.modes.append(self.training)
        logit = self.gain * (x - 0.5)
        return logit if self.channels == 1 else torch.cat([-logit / 2, logit / 2], dim=1)


class WindowMean(nn.Module):
    """Depends on the whole window, as the contrast branch does."""

    stride = (2, 4, 4)

    def forward(self, x):
        return torch.cat([x - x.mean((2, 3, 4), keepdim=True), x], dim=1)


@pytest.fixture
def image():
    return torch.rand(1, 1, 13, 20, 17, generator=torch.Generator().manual_seed(0))


def test_normalise_clips_and_scales():
    hu = torch.tensor([-3000, -1250, -500, 250, 3000], dtype=torch.int16)
    assert normalise(hu, WINDOW).tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 3), (7, 11, 13), (8, 8, 8), (9, 8, 17)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_of_a_pointwise_network_add_up_to_it(size, overlap, batch_size):
    """B10: one voxel, one slice, smaller than the window, prime sizes: same size out, blending changes nothing."""
    network, x = Threshold(), torch.rand(1, 1, *size)
    logits = WindowInferer((8, 8, 8), overlap, batch_size)(network, x, AIR)
    assert logits.shape == (1, 2, *size)
    torch.testing.assert_close(logits, 10 * torch.cat([0.5 - x, x - 0.5], dim=1))


def test_a_small_volume_is_padded_to_the_window_with_air():
    network, x = WindowMean(), torch.rand(1, 1, 3, 6, 5)
    padded = torch.full((1, 1, 4, 8, 8), (-1024 + 1250) / 1500)
    padded[..., 0:3, 1:7, 1:6] = x
    expected = network(padded)[..., 0:3, 1:7, 1:6]
    torch.testing.assert_close(WindowInferer((4, 8, 8), 0.5)(network, x, AIR), expected)


def test_blending_is_a_gaussian_mean_of_the_windows(image):
    """By hand along the middle of z: windows start at 0, 4 and 5, sigma is an eighth of their eight voxels."""
    network, x = WindowMean(), image[..., :8, :8]
    weight = torch.exp(-((torch.arange(8) - 3.5) ** 2) / 2).view(8, 1, 1)
    total, count = torch.zeros(1, 2, 13, 8, 8), torch.zeros(13, 1, 1)
    for start in (0, 4, 5):
        total[:, :, start : start + 8] += weight * network(x[:, :, start : start + 8])
        count[start : start + 8] += weight
    middle = (..., slice(3, 5), slice(3, 5))  # towards the corners of a window its weight has a floor
    torch.testing.assert_close(WindowInferer((8, 8, 8), 0.5)(network, x, AIR)[middle], (total / count)[middle])


def test_whole_volume_in_one_pass(image):
    network = Threshold(stride=(2, 4, 4))
    logits = WindowInferer(None, 0.5)(network, image, AIR)
    assert network.seen == [(1, 1, 14, 20, 20)]
    assert logits.shape == (1, 2, 13, 20, 17)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 25)] * 3), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.sampled_from([1, 2, 5]))
def test_progress_counts_to_its_total(size, overlap, batch_size):
    calls = []
    inferer = WindowInferer((4, 8, 12), overlap, batch_size, progress=lambda done, total: calls.append((done, total)))
    inferer(Threshold(), torch.zeros(1, 1, *size), AIR)
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_raise(image, value):
    """S1-21, J4: argmax of NaN is class 0, an empty mask that looks like a healthy patient."""

    class Poisoned(nn.Module):
        stride = 4

        def forward(self, x):
            logits = torch.cat([x, -x], dim=1)
            logits[0, 1, 0, 0, 0] = value
            return logits

    with pytest.raises(NonFiniteLogits, match="NaN or infinite"):
        WindowInferer((8, 8, 8), 0.5)(Poisoned(), image, AIR)


@pytest.mark.parametrize("memory", [torch.channels_last_3d, torch.contiguous_format])
def test_windows_come_in_the_layout_of_the_network(image, memory):
    class Noted(nn.Module):
        stride = 4

        def __init__(self):
            super().__init__()
            self.convolution = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1))

        def forward(self, x):
            self.strides = x.stride()
            return self.convolution(x)

    network = Noted().to(memory_format=memory)
    WindowInferer((8, 8, 8), 0.5)(network, image, AIR)
    assert (network.strides[1] == 1) is (memory is torch.channels_last_3d)


def test_window_off_the_stride_is_refused(image):
    with pytest.raises(ValueError, match=r"window \(8, 8, 6\) is not a multiple of the network's stride \(4, 4, 4\)"):
        WindowInferer((8, 8, 6), 0.5)(Threshold(), image, AIR)


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch_size": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        WindowInferer(**{"roi_zyx": (8, 8, 8), "overlap": 0.5, **options})


@pytest.mark.parametrize("window", [(-1250, 250), (-1024, 600), (-1000, 400)])
def test_air_is_a_voxel_of_minus_1024_hu(window):
    """Clipped to the window like one: a window that starts above it shows it as 0."""
    assert air(window) == float(normalise(torch.tensor([-1024], dtype=torch.int16), window))
    assert air(window) == pytest.approx(max(-1024 - window[0], 0) / (window[1] - window[0]), abs=1e-7)


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        ("float32", torch.float32),
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
@pytest.mark.parametrize("training", ["32-true", "bf16-mixed"])
def test_the_precision_is_the_inferer_s_own_inside_a_training_in_any(image, precision, inside, training):
    """Lightning wraps a validation in the training's autocast; a test is not, and both must give the same scores."""
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))
    network.stride = 1
    seen = []
    network.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=training == "bf16-mixed"):
        WindowInferer((8, 8, 8), 0.5, precision=precision)(network, image, AIR)
    assert set(seen) == {inside}


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_inside_float32_outside(image, half):
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))
    seen = []
    network.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    network.stride = (1, 1, 1)
    exact = WindowInferer((8, 8, 8), 0.5)(network, image, AIR)
    fast = WindowInferer((8, 8, 8), 0.5, precision=half)(network, image, AIR)
    assert {torch.float32, getattr(torch, half)} == set(seen)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, exact, rtol=0.05, atol=0.02)


def _geometry(axes, flips, shape=(6, 9, 7)):
    direction = np.zeros((3, 3))
    for column, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        direction[axis, column] = -1 if flip else 1
    return Geometry(shape, (2.0, 1.0, 1.5), (10.0, -20.0, 5.0), tuple(direction.ravel()))


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3)))


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_a_mask_comes_back_on_the_grid_of_its_scan(axes, flips):
    """B9: with nothing to resample, the mask is the threshold of the scan's own voxels, in all 48 orientations."""
    geometry = _geometry(axes, flips)
    hu = np.random.default_rng(0).integers(-1000, 200, geometry.shape_zyx).astype(np.int16)
    grid = Grid.plan(hu, geometry, geometry.canonical().spacing_zyx)
    mask = segment_case(Threshold(), grid.image(hu), grid, LESION, WINDOW, WindowInferer((8, 8, 8), 0.25))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, hu > -500)


@pytest.fixture
def case():
    geometry = _geometry((0, 1, 2), (False,) * 3)
    hu = np.random.default_rng(1).integers(-1000, 200, geometry.shape_zyx).astype(np.int16)
    grid = Grid.plan(hu, geometry, (2.5, 1.5, 1.5))
    return grid.image(hu), grid


def test_sigmoid_head_is_the_two_channel_head(case):
    inferer = WindowInferer((8, 8, 8), 0.25)
    one, two = (segment_case(Threshold(channels), *case, LESION, WINDOW, inferer) for channels in (1, 2))
    assert two.any()
    np.testing.assert_array_equal(one, two)


def test_the_network_runs_in_evaluation_mode_and_gets_its_mode_back(case):
    network = Threshold().train()
    segment_case(network, *case, LESION, WINDOW, WindowInferer((8, 8, 8), 0.25))
    assert network.training and not any(network.modes)


def test_a_network_of_another_task_is_refused(case):
    joint = Task("joint", 3, (0, 1, 2), {})
    with pytest.raises(ValueError, match="has 2 classes, task joint needs 3"):
        segment_case(Threshold(), *case, joint, WINDOW, WindowInferer((8, 8, 8), 0.25))


class Leaning(nn.Module):
    """Each voxel gets its neighbour on one side, along each axis: no mirror image of itself."""

    stride = 4

    def forward(self, x):
        moved = x.roll(-1, 4) + 0.5 * x.roll(-1, 3) + 0.25 * x.roll(-1, 2)
        return torch.cat([-moved, moved], dim=1)


@pytest.mark.parametrize("flips", [["x"], ["y"], ["z"], ["z", "x"], ["x", "y", "z"]])
def test_flips_are_the_mean_over_all_mirrored_windows(image, flips):
    """Each combination by hand: mirrored with numpy, segmented, mirrored back."""
    network, roi, numpy_axis = Leaning(), (8, 8, 8), {"z": 0, "y": 1, "x": 2}
    window = image[..., :8, :8, :8]
    expected, count = 0, 0
    for chosen in itertools.product([False, True], repeat=len(flips)):
        axes = tuple(numpy_axis[axis] for axis, flip in zip(flips, chosen, strict=True) if flip)
        mirrored = torch.from_numpy(np.flip(window[0, 0].numpy(), axes).copy())[None, None]
        found = network(mirrored)[0].numpy()
        expected, count = expected + np.flip(found, tuple(axis + 1 for axis in axes)), count + 1
    logits = WindowInferer(roi, 0.0, flips=flips)(network, window, AIR)
    np.testing.assert_allclose(logits[0].numpy(), expected / count, atol=1e-6)
    assert not np.allclose(logits.numpy(), WindowInferer(roi, 0.0)(network, window, AIR).numpy(), atol=1e-3)


@pytest.mark.parametrize("flips", ["x", ["w"], ["x", "x"], [2]])
def test_flips_are_axes_by_name(flips):
    with pytest.raises(ValueError, match=r"flips .* is no list of different axes among z, y, x"):
        WindowInferer((8, 8, 8), 0.0, flips=flips)


def test_flips_are_part_of_what_a_result_depends_on():
    assert WindowInferer((8, 8, 8), 0.0, flips=["x", "z"]).settings["flips"] == ["z", "x"]
    assert "flips" not in WindowInferer((8, 8, 8), 0.0).settings
