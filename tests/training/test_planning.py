"""`prepare.py plan=true` and `recipe=planned`: nnU-Net's rules by hand, memory that holds, the road a user takes."""

import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from covidseg.config.paths import CONF
from covidseg.config.plain import as_dict
from covidseg.config.plans import plan_file, read_plan
from covidseg.system.errors import BadInput
from covidseg.training import planning
from covidseg.training.planning import Plan, median_shape, plan, target_spacing


def case(spacing_zyx, box_zyx, shape_zyx=(200, 400, 400)):
    """case.json's grid of a scan in canonical order (superior, posterior, left)."""
    z, y, x = spacing_zyx
    native = {
        "shape_zyx": list(shape_zyx), "spacing_zyx": [z, y, x], "origin_xyz": [0.0, 0.0, 0.0],
        "direction": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    }  # fmt: skip
    box = [list(side) for side in box_zyx]
    return {
        "grid": {"native": native, "box_zyx": box, "shape_zyx": [1, 1, 1], "spacing_zyx": [1.0] * 3, "body_found": True}
    }


def model(width=16, **options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", overrides=[f"model.width={width}", *(f"{key}={value}" for key, value in options.items())]
        )
    return as_dict(cfg.model)


CT = [case((1.25, 0.7, 0.7), ((0, 200), (50, 350), (10, 390))) for _ in range(6)]


def test_voxels_are_the_median_and_a_coarse_axis_its_tenth_percentile():
    fine = [[1.0, 0.7, 0.7], [1.25, 0.8, 0.8], [2.0, 0.7, 0.7]]
    assert target_spacing(fine) == (1.25, 0.7, 0.7)
    coarse = [[5.0, 0.7, 0.7]] * 9 + [[1.0, 0.7, 0.7]]
    assert target_spacing(coarse)[0] == pytest.approx(np.percentile([5.0] * 9 + [1.0], 10), abs=1e-3)
    assert target_spacing([[8.0, 0.7, 0.7]] * 9 + [[0.1, 0.7, 0.7]])[0] >= 0.7, "never finer than the finest axis"


def test_the_median_body_is_counted_in_voxels_of_the_plan():
    assert median_shape(CT, (2.5, 1.4, 1.4)) == (100, 150, 190)


def test_axes_are_those_of_the_body_however_the_scan_was_stored():
    """A sagittal acquisition: its first array axis is left to right."""
    sagittal = case((5.0, 1.0, 1.0), ((0, 100), (0, 100), (0, 100)))
    sagittal["grid"]["native"]["direction"] = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    found = target_spacing([planning._canonical(sagittal)])
    assert sorted(found) == [1.0, 1.0, 5.0] and found[0] != 5.0


@pytest.fixture
def unmeasured(monkeypatch):
    """No step is computed; what it would take is what was estimated."""
    monkeypatch.setattr(planning, "measure_step", lambda *asked: (0, 1.0))


@pytest.mark.parametrize("gigabytes", [1.5, 4, 16, 80])
def test_the_patch_fits_and_one_stride_more_would_not(unmeasured, gigabytes):
    found = plan(CT, model(64), "covidsegnet", int(gigabytes * 1e9))
    need = planning._Need.of(model(found.width), (8, 8, 8))
    assert need(found.batch_size, found.patch_size_zyx) <= gigabytes * 1e9
    assert all(side % 8 == 0 for side in found.patch_size_zyx)
    body = median_shape(CT, found.spacing_zyx)
    wider = [planning._first_patch(found.spacing_zyx, body, (8, 8, 8))]
    if found.patch_size_zyx != wider[0]:  # it was shrunk: the step before did not fit
        grown = [tuple(n + 8 * (axis == number) for number, n in enumerate(found.patch_size_zyx)) for axis in range(3)]
        assert any(need(found.batch_size, patch) > gigabytes * 1e9 for patch in grown)
    assert math.prod(found.patch_size_zyx) >= planning.WORTH_HAVING or found.width == planning.LEAST_WIDTH


def test_more_memory_is_never_spent_on_less(unmeasured):
    plans = [plan(CT, model(64), "covidsegnet", int(gb * 1e9)) for gb in (1, 2, 4, 8, 16, 32, 64)]
    widths = [found.width for found in plans]
    assert widths == sorted(widths) and widths[-1] == 64 and widths[0] < 64
    same = [math.prod(found.patch_size_zyx) for found in plans if found.width == 64]
    assert same == sorted(same) and len(same) > 1


def test_what_is_left_goes_into_the_batch_of_small_bodies(unmeasured):
    small = [case((2.0, 2.0, 2.0), ((0, 32), (0, 48), (0, 48))) for _ in range(100)]
    found = plan(small, model(16), "covidsegnet", int(20e9))
    assert found.patch_size_zyx == (32, 48, 48) and 2 < found.batch_size <= 5, "at most a twentieth of the data"


def test_what_no_width_fits_is_refused(unmeasured):
    with pytest.raises(BadInput, match=r"not even covidsegnet of width 8 .* a larger plan_memory_gb"):
        plan(CT, model(64), "covidsegnet", 10**8)


def test_a_step_that_takes_more_than_was_estimated_shrinks_the_patch(monkeypatch):
    """The device has the last word."""
    seen = []

    def measure(model, patch, batch, device):
        seen.append(patch)
        return (10**12 if len(seen) < 3 else 0), 1.0

    monkeypatch.setattr(planning, "measure_step", measure)
    found = plan(CT, model(16), "covidsegnet", int(2e9))
    assert len(seen) == 3 and found.patch_size_zyx == seen[-1]
    assert math.prod(seen[0]) > math.prod(seen[1]) > math.prod(seen[2])


def test_the_estimate_is_near_what_a_step_takes():
    """On the CPU, by the process's own peak: within a factor of two and a half, and not below half of it."""
    options, patch = model(8), (32, 64, 64)
    measured, seconds = planning.measure_step(options, patch, 2, torch.device("cpu"))
    estimated = planning._Need.of(options, (8, 8, 8))(2, patch) - planning.RESERVED
    assert seconds > 0 and measured < 2.5 * estimated + 2e8


def test_a_plan_comes_back_as_it_was_written(tmp_path):
    made = Plan("unet3d", (2.5, 1.4, 1.4), (64, 96, 96), 32, 2, ("because",))
    made.save(tmp_path, "mine")
    back = read_plan(tmp_path, "mine")
    assert back["patch_size_zyx"] == [64, 96, 96] and back["why"] == ["because"] and back["width"] == 32


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("format: 2", "format is none of 1"),
        ("[1, 2", "cannot be read"),
        ("format: 1\nmodel: unet3d", "lacks spacing_zyx"),
        ("!!python/object/apply:os.system [ls]", "cannot be read"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, text, wrong):
    path = plan_file(tmp_path, "mine")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(BadInput, match=wrong):
        read_plan(tmp_path, "mine")


def test_a_run_is_planned_and_trained_as_the_messages_say(in_process, tmp_path):
    """First the refusal, then the command that it names, then the training: small, on phantoms."""
    small = ["data=phantom", "data.source.count=6", "data.source.shape_zyx=[34,48,48]"]
    train = ["recipe=planned", *small, "trainer=cpu", "logger=csv", "training.max_steps=2", "training.validate_every=2",
             "augment=none", "training.evaluate=last", "name=t"]  # fmt: skip
    status, _, err = in_process("train", *train)
    assert status == 2
    assert err == (
        "error: recipe=planned: there is no plan for phantom yet -> "
        "python src/prepare.py data=phantom ... plan=true makes one\n"
    )
    status, out, err = in_process("prepare", *small, "plan=true", "plan_memory_gb=0.7", "data.workers=0")
    assert status == 0, err
    assert "used by recipe=planned" in out and "measured: " in out
    assert not list((tmp_path / "data").glob("prepared/*")), "planning prepares nothing"
    content = read_plan(tmp_path / "data", "phantom")
    status, _, err = in_process("train", *train)
    assert status == 0, err
    (config,) = tmp_path.glob("runs/t/*/lesion/seed0/config.yaml")
    held = OmegaConf.load(config)
    assert list(held.training.patch_size_zyx) == content["patch_size_zyx"] and held.model.width == content["width"]
    assert list(held.data.spacing_zyx) == content["spacing_zyx"]
    assert "${planned" not in config.read_text()


def test_a_memory_that_is_none_is_refused(in_process):
    status, _, err = in_process("prepare", "data=phantom", "data.source.count=3", "data.source.shape_zyx=[34,48,48]",
                                "plan=true", "plan_memory_gb=-1", "data.workers=0")  # fmt: skip
    assert status == 2 and "plan_memory_gb=-1: is no memory" in err
