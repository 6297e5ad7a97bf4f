"""From a prepared image to classes on the scan's own grid: overlapping windows, blended, then the way back."""

import itertools
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covidseg.data.prepare.grid import Grid
from covidseg.data.train.patches import AIR_HU
from covidseg.evaluation.structures import Task
from covidseg.inference.onednn import single_windows
from covidseg.inference.tiling import count_windows
from covidseg.nets.network import laid_out, memory_format
from covidseg.system.errors import CovidSegError

Progress = Callable[[int, int], None]  # (windows done, windows in all)


class NonFiniteLogits(CovidSegError):
    """The network's output holds NaN or infinity. Its argmax would be an ordinary-looking mask, so there is none."""

    exit_code = 2


def normalise(image: Tensor, window: Sequence[float]) -> Tensor:
    """HU of any dtype -> float32 in [0, 1]: clipped to `window` (low, high) and scaled."""
    low, high = window
    return ((image.float() - low) / (high - low)).clamp_(0, 1)


def air(window: Sequence[float]) -> float:
    """What a normalised image is padded with: the padding of the training patches, normalised like any voxel."""
    return float(normalise(torch.tensor(AIR_HU), window))


AXES = {"z": 2, "y": 3, "x": 4}  # of a batch of windows (B, C, D, H, W); x is left-right
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def precision_on(device: torch.device, precision: str) -> str:
    """What "auto" means on a device: "bfloat16" on GPUs that compute in it, "float32" anywhere else."""
    if precision != "auto":
        return precision
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def has_bf16_units() -> bool:
    """Whether this processor computes bfloat16 itself; true where torch does not say, as on other than x86."""
    told = [getattr(torch.cpu, f"_is_{name}_supported", lambda: True)() for name in ("avx512_bf16", "amx_tile")]
    return any(told) or platform.machine() not in ("x86_64", "AMD64")


class WindowInferer:
    """Logits of a whole volume from windows of the size the network was trained on, weighted by a Gaussian.

    The window is part of the network: the contrast branch pools over it and atrous taps see its border. So a volume
    smaller than the window is padded to it with what training patches are padded with, not seen at another size.

    `roi_zyx`: window in voxels, a multiple of the network's stride; None passes the whole volume at once, padded to
    the stride, which is several times faster and not what the network was trained on. `overlap`: share of a window
    that the next one covers. `batch_size`: windows per pass. `precision`: "float32", "bfloat16" or "float16" (for
    GPUs without bfloat16, as Turing's; logits beyond its range are refused) autocast inside the network, or "auto"
    (`precision_on`), whatever the surrounding code computes in: validation inside a training in mixed precision is
    what a test is. `flips`: axes among "z", "y" and "x"; each window's logits are the mean over all combinations of
    mirroring along them, turned back, as nnU-Net's are: twice the passes for each axis. Blending is float32. Memory
    beside the network's own: the volume times (input + classes + 1) floats.
    """

    def __init__(
        self,
        roi_zyx: Sequence[int] | None,
        overlap: float,
        batch_size: int = 1,
        precision: str = "auto",
        progress: Progress | None = None,
        flips: Sequence[str] = (),
    ):
        if precision not in ("auto", *_PRECISIONS):
            raise ValueError(f"precision {precision!r} is none of auto, {', '.join(_PRECISIONS)}")
        if not 0 <= overlap < 1 or batch_size < 1:
            raise ValueError(f"overlap {overlap} must be in [0, 1) and batch_size {batch_size} at least 1")
        if isinstance(flips, str) or any(axis not in AXES for axis in flips) or len(set(flips)) < len(flips):
            raise ValueError(f"flips {flips} is no list of different axes among {', '.join(AXES)}")
        self.flips = tuple(axis for axis in AXES if axis in flips)
        self.roi_zyx = None if roi_zyx is None else tuple(int(size) for size in roi_zyx)
        self.overlap, self.batch_size, self.precision, self.progress = overlap, batch_size, precision, progress

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, for a manifest."""
        roi = None if self.roi_zyx is None else list(self.roi_zyx)
        flips = {"flips": list(self.flips)} if self.flips else {}
        return {"roi_zyx": roi, "overlap": self.overlap, "precision": self.precision, **flips}

    @torch.inference_mode()
    def __call__(self, network: nn.Module, image: Tensor, padding: float) -> Tensor:
        """Logits (1, C, D, H, W), float32, of a normalised image (1, in, D, H, W) of any size, on its device.

        `padding`: what lies outside the image, normalised like it (`air`). The network must be in evaluation mode.
        Raises `NonFiniteLogits`; `ValueError` for a window off the stride.
        """
        from monai.inferers import sliding_window_inference  # a second of import

        stride = per_axis(cast(int, network.stride))
        size = tuple(image.shape[2:])
        roi = self.roi_zyx or tuple(math.ceil(n / step) * step for n, step in zip(size, stride, strict=True))
        if any(n % step for n, step in zip(roi, stride, strict=True)):
            raise ValueError(f"inference window {roi} is not a multiple of the network's stride {stride}")
        inside, memory = _PRECISIONS[precision_on(image.device, self.precision)], memory_format(network)
        total, done = math.ceil(count_windows(size, roi, self.overlap) / self.batch_size), 0

        def predict(windows: Tensor) -> Tensor:
            nonlocal done
            precision = torch.autocast(windows.device.type, inside, enabled=inside is not torch.float32)
            with precision, single_windows(network, windows.device):
                logits = _mirrored_mean(network, laid_out(windows, memory), self.flips)
            done += 1
            if self.progress:
                self.progress(done, total)
            return logits

        windows = (image, roi, self.batch_size, predict)
        logits = cast(Tensor, sliding_window_inference(*windows, self.overlap, mode="gaussian", cval=padding))
        if not torch.isfinite(logits).all():
            raise NonFiniteLogits(
                "network", "gave NaN or infinite logits", "use another checkpoint, or precision=float32"
            )
        return logits


def _mirrored_mean(network: nn.Module, windows: Tensor, flips: Sequence[str]) -> Tensor:
    """Logits of `windows` in float32, the mean over every combination of the axes `flips`."""
    axes = [AXES[axis] for axis in flips]
    combinations = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    total = network(windows).float()
    for chosen in combinations[1:]:
        total = total + network(windows.flip(chosen)).float().flip(chosen)
    return total / len(combinations) if flips else total


def case_scores(
    network: nn.Module, image: np.ndarray, task: Task, window: Sequence[float], inferer: WindowInferer
) -> Tensor:
    """Logits (C, D, H, W) of a prepared case, C at least 2, where the network's parameters are.

    `image`: int16 HU (z, y, x); `window`: the HU range the network was trained with. The network runs in evaluation
    mode, and is given back in the mode it was in.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        hu = torch.from_numpy(np.array(image))  # a copy: torch does not take a read-only memory map
        logits = inferer(network, normalise(hu.to(device), window)[None, None], air(window))[0]
    finally:
        network.train(was_training)
    if logits.shape[0] not in (1, task.out_channels):
        raise ValueError(f"the network has {logits.shape[0]} classes, task {task.name} needs {task.out_channels}")
    if logits.shape[0] == 1:  # a sigmoid head: foreground where its logit is above that of the background, 0
        logits = F.pad(logits, (0, 0, 0, 0, 0, 0, 1, 0))
    return logits


def segment_case(
    network: nn.Module,
    image: np.ndarray,
    grid: Grid,
    task: Task,
    window: Sequence[float],
    inferer: WindowInferer,
    watch: Callable[[Tensor], None] | None = None,
) -> np.ndarray:
    """Classes of a prepared case, uint8 (z, y, x) on the scan's own grid and in its own array order.

    `image` is on `grid`; the rest as in `case_scores`, whose logits `watch` is shown.
    """
    logits = case_scores(network, image, task, window, inferer)
    if watch:
        watch(logits)
    return grid.scores_to_native(logits)


def per_axis(stride: int | Sequence[int]) -> tuple[int, ...]:
    return (stride,) * 3 if isinstance(stride, int) else tuple(stride)
