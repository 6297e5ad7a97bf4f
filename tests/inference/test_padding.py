"""K13: a scan smaller than the window is padded with one value, in training, validation, evaluation and prediction."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import covidseg
from covidseg.data.prepare.grid import Grid
from covidseg.data.train.datamodule import CaseSet
from covidseg.data.train.patches import PatchSampler
from covidseg.evaluation.cases import evaluate_cases
from covidseg.inference.batch import Predictor
from covidseg.inference.window import normalise
from covidseg.scans.geometry import Geometry
from covidseg.scans.read import ScanSource
from covidseg.system.signals import StopRequest
from covidseg.training.parts import build_task

SPACING = (5.0, 5.0, 5.0)
SHAPE = (24, 40, 44)
SMALLER = {"z": (32, 32, 32), "y": (16, 48, 32), "x": (16, 32, 64), "all axes": (32, 48, 64)}
OUTSIDE = (-1024 + 1250) / 1500  # of the run's window, [-1250, 250]


class Spy(nn.Module):
    """Remembers the windows it sees, and answers with what depends on all of each."""

    stride = 4

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.windows = []

    def forward(self, x):
        self.windows.append(x.detach().clone())
        logit = self.gain * (x - 1.85 * x.mean())  # on the padding, too, as the contrast branch's does
        return torch.cat([-logit, logit], dim=1)

    def padding(self):
        """The values outside the scan, whose own are above -500 HU."""
        seen = torch.cat([window.flatten() for window in self.windows])
        return set(seen[seen < (-500 + 1250) / 1500].tolist())


@pytest.fixture
def case():
    """A case of soft tissue only, so that whatever is darker is padding."""
    rng = np.random.default_rng(0)
    image = rng.integers(-300, 200, SHAPE).astype(np.int16)
    mask = (rng.random(SHAPE) < 0.3).astype(np.uint8) * 2
    geometry = Geometry(SHAPE, SPACING, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    grid = Grid(geometry, tuple((0, n) for n in SHAPE), SHAPE, SPACING)
    return SimpleNamespace(
        id="a", patient="a", site="", annotated=("lesion",), image=image, mask=mask, grid=grid,
        foreground={"lesion": np.argwhere(mask)}, reference=lambda: mask,
    )  # fmt: skip


@pytest.fixture
def spied(train_config, make_run, monkeypatch):
    """`spied(roi)` -> (LightningModule, Segmenter, spy): what trains and what is loaded, around one network."""

    def make(roi):
        size = str(list(roi)).replace(" ", "")
        spy = Spy()
        task = build_task(train_config(f"training.patch_size_zyx={size}", f"inference.roi_zyx={size}"), StopRequest())
        task.network = spy
        run = make_run(**{"inference.roi_zyx": size, "data.spacing_zyx": "[5.0,5.0,5.0]"})
        segmenter = covidseg.load(run, device="cpu")
        object.__setattr__(segmenter, "network", spy.eval())
        return task, segmenter, spy

    return make


def _write(path, image):
    import SimpleITK as sitk

    volume = sitk.GetImageFromArray(image)
    volume.SetSpacing(SPACING[::-1])
    sitk.WriteImage(volume, str(path))


@pytest.mark.parametrize("axes", SMALLER)
def test_k13_a_scan_smaller_than_the_window_is_padded_with_one_value(spied, case, tmp_path, monkeypatch, axes):
    roi = SMALLER[axes]
    task, segmenter, spy = spied(roi)
    monkeypatch.setattr(type(task), "global_step", 0)
    monkeypatch.setattr(type(task), "global_rank", 0)

    def train():
        image, mask = np.empty((2, 1, *roi), np.int16), np.empty((2, 1, *roi), np.uint8)
        PatchSampler([case], ["lesion"], roi, 2, 0.0, seed=0).batch(0, image, mask)
        task.training_step({"image": torch.from_numpy(image), "mask": torch.from_numpy(mask), "step": 0, "part": 0}, 0)

    def validate():
        monkeypatch.setattr(task, "log_dict", lambda scores, **options: None)
        task.validation_step(CaseSet([case]), 0)

    def evaluate():
        evaluate_cases(segmenter.segment_prepared, {"test": [case]}, segmenter.task)

    def predict():
        _write(tmp_path / "scan.nii.gz", case.image)
        source = ScanSource("s", tmp_path / "scan.nii.gz")
        Predictor([segmenter], tmp_path / "out", ".nii.gz", -300, reading={"assume": {"hu": True}}).run(source)

    seen = {}
    for way in (train, validate, evaluate, predict):
        spy.windows.clear()
        way()
        seen[way.__name__] = spy.padding()
        assert {tuple(window.shape[2:]) for window in spy.windows} == {roi}
    assert all(values == seen["train"] for values in seen.values()), seen
    assert list(seen["train"]) == pytest.approx([OUTSIDE], abs=1e-7)


def test_k13_the_whole_volume_in_one_pass_is_padded_to_the_stride_with_the_same_value(spied, case):
    _, segmenter, spy = spied((32, 32, 32))
    segmenter.inferer.roi_zyx = None
    case.image = case.image[:22, :39, :42]
    case.grid = Grid(case.grid.native, ((0, 22), (0, 39), (0, 42)), (22, 39, 42), SPACING)
    segmenter.segment_prepared(case)
    assert [tuple(window.shape[2:]) for window in spy.windows] == [(24, 40, 44)]
    assert list(spy.padding()) == pytest.approx([OUTSIDE], abs=1e-7)


def test_k13_a_padded_prediction_is_the_one_computed_by_hand(spied, case):
    """The scan in the middle of a window of air, through the network, and cut out again."""
    task, segmenter, spy = spied((32, 48, 64))
    low = [(n - m) // 2 for n, m in zip((32, 48, 64), SHAPE, strict=True)]
    inside = tuple(slice(first, first + m) for first, m in zip(low, SHAPE, strict=True))
    volume = np.full((32, 48, 64), -1024, np.int16)
    volume[inside] = case.image
    logits = spy(normalise(torch.from_numpy(volume), (-1250, 250))[None, None])[0]
    expected = logits.argmax(0).numpy()[inside]
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(segmenter.segment_prepared(case), expected)
    np.testing.assert_array_equal(task.segment(case), expected)
