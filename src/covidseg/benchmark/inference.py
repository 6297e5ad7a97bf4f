"""The suite `inference`: a whole scan through one network, from HU to classes on the same grid."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from covidseg.benchmark.contest import OTHER_OF_OURS, OURS, TUNED, USUAL, Contender, Contest
from covidseg.benchmark.scans import WINDOW, scans
from covidseg.config.build import build_network
from covidseg.data.prepare.grid import body_box
from covidseg.inference.lung_box import Doubt, lung_box
from covidseg.inference.window import WindowInferer, air, normalise

_OURS, _PAIRS, _TUNED = (
    "covidseg",
    "covidseg, two windows at a time",
    "MONAI, cropped to the body, two windows at a time",
)


def contests(cfg: DictConfig) -> list[Contest]:
    """One for each network that is asked for."""
    return [_contest(cfg, name) for name in cfg.inference_suite.models]


def _contest(cfg: DictConfig, name: str) -> Contest:
    options = cfg.inference_suite
    (scan,) = scans(Path(cfg.output) / "scans", options.shape_zyx, 1)
    hu = np.array(scan.image)
    body = body_box(hu, scan.spacing_zyx)
    assert body is not None  # it is a chest
    box = tuple(slice(low, high) for low, high in body)
    network = _network(name, options.width)
    roi = tuple(options.roi_zyx)

    lungs = lung_box(hu, scan.spacing_zyx)
    assert not isinstance(lungs, Doubt)
    small = tuple(slice(low, high) for low, high in lungs)

    def ours(box: tuple[slice, ...], batch_size: int, whole: bool = False) -> Callable[[], Callable[[], Tensor]]:
        inferer = WindowInferer(None if whole else roi, 0.5, batch_size, "float32")
        return lambda: lambda: _whole(hu, box, inferer(network, _image(hu[box]), air(WINDOW)))

    pairs = int(options.batch_size)
    ways = [
        Contender(_OURS, OURS, ours(box, 1)),
        Contender(_PAIRS, OTHER_OF_OURS, ours(box, pairs)),
        Contender("covidseg, inference.box=lungs", OTHER_OF_OURS, ours(small, 1)),
        Contender("covidseg, inference.box=lungs, whole=true", OTHER_OF_OURS, ours(small, 1, whole=True)),
        Contender("MONAI sliding_window_inference", USUAL, lambda: lambda: _monai(hu, network, roi, 1, "constant")),
        Contender(
            _TUNED, TUNED, lambda: lambda: _whole(hu, box, _monai_logits(hu[box], network, roi, pairs, "gaussian"))
        ),
        Contender("nnU-Net's predictor", USUAL, lambda: _nnunet(hu, network, roi)),
    ]
    z, y, x = hu.shape
    title = f"inference: {name} of width {options.width}, a scan of {x} x {y} x {z}"
    return Contest(title, ways, 1, options.rounds, _check)


def _check(found: Mapping[str, Tensor]) -> str:
    """The same windows with the same weights give the same classes; other windows nearly."""
    ours = found[_OURS]
    same = {name: float((classes == ours).float().mean()) for name, classes in found.items()}
    if min(same[_PAIRS], same[_TUNED]) < 1 - 1e-5:
        raise AssertionError(f"equal windows give other classes: {same}")
    return "Voxels of the same class as ours: " + ", ".join(f"{name} {share:.3%}" for name, share in same.items()) + "."


def _network(name: str, width: int) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(name, width=width, in_channels=1, out_channels=2).eval()
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _image(hu: np.ndarray) -> Tensor:
    return normalise(torch.from_numpy(np.array(hu)), WINDOW)[None, None]


def _whole(hu: np.ndarray, box: tuple[slice, ...], logits: Tensor) -> Tensor:
    classes = torch.zeros(hu.shape, dtype=torch.uint8)
    classes[box] = logits[0].argmax(0).to(torch.uint8)
    return classes


@torch.inference_mode()
def _monai_logits(hu: np.ndarray, network: nn.Module, roi: tuple[int, ...], batch_size: int, mode: str) -> Tensor:
    from monai.inferers import sliding_window_inference

    found = sliding_window_inference(_image(hu), roi, batch_size, network, 0.5, mode=mode, cval=air(WINDOW))
    assert isinstance(found, Tensor)
    return found


def _monai(hu: np.ndarray, network: nn.Module, roi: tuple[int, ...], batch_size: int, mode: str) -> Tensor:
    return _monai_logits(hu, network, roi, batch_size, mode)[0].argmax(0).to(torch.uint8)


def _nnunet(hu: np.ndarray, network: nn.Module, roi: tuple[int, ...]) -> Callable[[], Tensor]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    cpu = torch.device("cpu")
    predictor = nnUNetPredictor(
        0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False, device=cpu, allow_tqdm=False
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=roi)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)

    def run() -> Tensor:
        logits = predictor.predict_sliding_window_return_logits(_image(hu)[0])
        return logits.argmax(0).to(torch.uint8)

    return run
