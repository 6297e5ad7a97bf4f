import hashlib
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import covidseg
from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint
from covidseg.system.errors import BadInput


def _edit(run, change):
    """Rewrite a run's config.yaml."""
    config = OmegaConf.load(run / "config.yaml")
    change(config)
    OmegaConf.save(config, run / "config.yaml")


def _save(run, name, state):
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, run / "checkpoints" / name)


def _state(run):
    return load_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
def test_predict_returns_a_mask_on_the_grid_of_the_scan(make_run, write_scan, tmp_path, extension):
    _, scan = write_scan(tmp_path / f"scan{extension}")
    segmenter = covidseg.load(make_run())
    mask = segmenter.predict(tmp_path / f"scan{extension}")
    assert mask.GetSize() == scan.GetSize()
    assert mask.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    np.testing.assert_allclose(mask.GetDirection(), scan.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(mask.GetSpacing(), scan.GetSpacing(), atol=1e-5)
    assert mask.GetMetaDataKeys() == ()
    assert segmenter.task.name == "lesion"
    assert not segmenter.network.training


def test_the_weights_are_those_of_the_checkpoint(make_run):
    run = make_run()
    segmenter = covidseg.load(str(run), device="cpu")
    state = segmenter.network.state_dict()
    assert all(torch.equal(state[name.removeprefix("network.")], value) for name, value in _state(run).items())
    assert segmenter.checkpoint_sha256 == hashlib.sha256((run / "checkpoints/last.ckpt").read_bytes()).hexdigest()
    assert segmenter.name == "/".join(run.parts[-4:])


def test_auto_takes_what_the_table_was_scored_with(make_run):
    """training.evaluate says last or best; a user may ask for the other one."""
    run = make_run()
    best = {name: value + 1 if value.is_floating_point() else value for name, value in _state(run).items()}
    _save(run, "best.ckpt", best)
    name = next(iter(best)).removeprefix("network.")

    def weight(**options):
        return covidseg.load(run, **options).network.state_dict()[name]

    last = _state(run)[f"network.{name}"]
    assert torch.equal(weight(), last)
    assert torch.equal(weight(checkpoint="best"), best[f"network.{name}"])
    _edit(run, lambda config: config.training.update(evaluate="best"))
    assert torch.equal(weight(), best[f"network.{name}"])
    assert torch.equal(weight(checkpoint="last"), last)


def test_window_options_of_the_run_and_of_the_caller(make_run):
    run = make_run(**{"inference.overlap": 0.25})
    assert covidseg.load(run).inferer.settings == {"roi_zyx": [32, 32, 32], "overlap": 0.25, "precision": "float32"}
    changed = covidseg.load(run, overlap=0.5, roi_zyx=None, precision="bfloat16").inferer.settings
    assert changed == {"roi_zyx": None, "overlap": 0.5, "precision": "bfloat16"}
    with pytest.raises(BadInput, match="inference: overlap 2"):
        covidseg.load(run, overlap=2)
    with pytest.raises(BadInput, match="device=tpu9"):
        covidseg.load(run, device="tpu9")


def test_a_short_absolute_path_is_shown_as_it_is():
    with pytest.raises(BadInput, match=r"^run=/no/run: holds no config"):
        covidseg.load("/no/run")


def test_folders_that_are_no_run_are_refused(make_run, tmp_path):
    with pytest.raises(BadInput, match=r"holds no config\.yaml"):
        covidseg.load(tmp_path / "nowhere")
    run = make_run()
    (run / "config.yaml").write_text("a: [1,")
    with pytest.raises(BadInput, match=r"config\.yaml: cannot be read"):
        covidseg.load(run)
    (run / "config.yaml").write_text("a: 1\n")
    with pytest.raises(BadInput, match=r"config\.yaml is not that of a run"):
        covidseg.load(run)


def test_missing_truncated_and_altered_weights_are_refused(make_run):
    """G3, S1-15: torch itself loads a checkpoint with a flipped byte without a word."""
    run = make_run()
    path = run / "checkpoints/last.ckpt"
    content = path.read_bytes()
    with pytest.raises(BadInput, match=r"best\.ckpt: is not there"):
        covidseg.load(run, checkpoint="best")
    with pytest.raises(BadInput, match="checkpoint=newest"):
        covidseg.load(run, checkpoint="newest")
    for damaged, message in (
        (content[: len(content) // 2], "truncated"),
        (content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "checksum"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=message):
            covidseg.load(run)


def test_weights_of_another_network_and_non_finite_weights_are_refused(make_run):
    """G4, S1-21."""
    run = make_run()
    _edit(run, lambda config: config.model.update(width=8))
    with pytest.raises(BadInput, match=r"last\.ckpt: does not fit the network of config\.yaml"):
        covidseg.load(run)


def test_a_run_folder_cannot_run_code(make_run, tmp_path, monkeypatch):
    """G6, P1, P3, P4: a pickle that would call something, a `_target_` from outside, an interpolation of a secret."""
    canary = tmp_path / "canary"
    run = make_run()

    class Payload:
        def __reduce__(self):
            return canary.touch, ()

    intact = (run / "checkpoints/last.ckpt").read_bytes()
    _save(run, "last.ckpt", {"network.x": Payload()})
    with pytest.raises(BadInput, match="something other than weights"):
        covidseg.load(run)
    assert not canary.exists()

    (run / "checkpoints/last.ckpt").write_bytes(intact)
    _edit(run, lambda config: config.model.update(_target_="os.system"))
    with pytest.raises(BadInput, match=r"os\.system"):
        covidseg.load(run)

    run = make_run(seed=1)
    monkeypatch.setenv("SECRET", "hunter2")
    text = (run / "config.yaml").read_text().replace("width: 4", "width: ${oc.env:SECRET}")
    (run / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match="holds an interpolation") as caught:
        covidseg.load(run)
    assert "hunter2" not in str(caught.value)


def test_the_lungs_box_is_what_the_network_sees_where_it_is_asked_for(make_run):
    from covidseg.inference.lung_box import lung_box
    from covidseg.phantom.make import make_phantom
    from covidseg.scans.geometry import Geometry

    made = make_phantom(5, (40, 64, 64), patient=4)
    place = Geometry(made.hu.shape, made.spacing_zyx, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    scan = types.SimpleNamespace(voxels=made.hu, geometry=place)
    run = make_run("lung")
    small, whole = covidseg.load(run, box="lungs"), covidseg.load(run)
    grid, said = small.grid_of(scan)
    assert grid.box_zyx == lung_box(made.hu, made.spacing_zyx) != whole.grid_of(scan)[0].box_zyx and not said
    inside = np.zeros(made.hu.shape, bool)
    inside[tuple(slice(low, high) for low, high in grid.box_zyx)] = True
    assert not small.segment(scan)[~inside].any()


def test_the_mean_of_runs_is_that_of_their_probabilities(make_run):
    runs = [make_run(seed=seed) for seed in range(3)]
    image = np.random.default_rng(0).integers(-1000, 200, (20, 40, 36), np.int16)
    members = [covidseg.load(run) for run in runs]
    expected = np.mean([one.scores(image).softmax(0).numpy() for one in members], axis=0)
    mean = covidseg.load(runs)
    np.testing.assert_allclose(mean.scores(image).softmax(0).numpy(), expected, atol=1e-6)
    assert mean.name == members[0].name and len(mean.members) == 3
    assert torch.equal(covidseg.load(runs[:1]).scores(image), members[0].scores(image))


def test_progress_runs_once_through_the_windows_of_all_runs(make_run):
    seen = []
    mean = covidseg.load([make_run(seed=seed) for seed in range(2)])
    mean.scores(np.zeros((20, 40, 36), np.int16), lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and {total for _, total in seen} == {len(seen)}


def test_flips_can_be_asked_of_a_run_that_was_scored_without(make_run):
    run = make_run()
    assert covidseg.load(run, flips=["x"]).inferer.settings["flips"] == ["x"]
    with pytest.raises(BadInput, match="inference: flips"):
        covidseg.load(run, flips=["left"])
