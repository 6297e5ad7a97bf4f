"""A whole training, as W&B would show it: read back from the file that `wandb sync` sends."""

from covidseg.runs.folder import run_dir
from covidseg.training.run import train


def test_a_tracked_run_holds_curves_pictures_of_held_out_cases_and_its_data(train_config, monkeypatch, offline_runs):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = train_config("logger=wandb_offline", "task=joint", "training.log_every=4")
    train(cfg)
    (tracked,) = offline_runs(run_dir(cfg))
    curves = {name for row in tracked["history"] for name in row}
    wanted = {"train/soft_dice_loss", "train/cross_entropy", "train/gradient_norm", "val/loss", "val/dice", "train/lr"}
    assert curves >= wanted
    assert tracked["best"]["val/loss"] == "min"
    pictures = {name.partition("/_type")[0] for name in curves if name.startswith(("test/c6", "external/c7"))}
    assert any(name.startswith("test/c6") for name in pictures), sorted(curves)
    images = list(run_dir(cfg).glob("wandb/*/files/media/images/test/*.png"))
    masks = list(run_dir(cfg).glob("wandb/*/files/media/images/mask/test/*.png"))
    assert len(images) == 16, "a slider of slices"
    assert len(masks) > 8, "reference and prediction over each; equal ones are one file"
    by_type = {one["type"]: one for one in tracked["artifacts"]}
    model = by_type["model"]
    assert "dataset" in by_type
    assert model["metadata"]["sets"].keys() == {"test", "external"} and "r" in model["aliases"]
