import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from omegaconf import OmegaConf

from covidseg import tracking
from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint
from covidseg.system.scrub import scrub_text, scrubbed
from covidseg.tracking.callback import picture
from covidseg.tracking.wandb_run import chosen_mode, sync_command

SECRET = "canary-5f2d9c"
ROWS = [
    {"case": "p01", "set": "test", "structure": "lesion", "dice": 0.5, "undefined": ""},
    {"case": "p02", "set": "test", "structure": "lesion", "dice": None, "undefined": "dice"},
]
METRICS = {"sets": {"test": {"lesion": {"n": 2, "dice": {"mean": 0.5}}}}, "parameters": 1234}


class Line(pl.LightningModule):
    """The smallest task that logs, validates and returns a case to draw."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("the loss is not a number")
        self.last_loss = self.layer(batch["image"]).square().mean()
        return self.last_loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.track({"train/loss": self.last_loss.item()})

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.track({"val/dice": 0.25})
        reference = np.zeros((3, 8, 8), np.uint8)
        reference[1, 2:5, 2:5] = 1
        prediction = np.roll(reference, 1, axis=1)
        image = np.full((3, 8, 8), -800, np.int16)
        return {"case": "p03", "image": image, "reference": reference, "prediction": prediction}

    def track(self, metrics):
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(cfg, run_dir, steps, fail_at=None, ckpt_path=None, extra=(), scored="last.ckpt"):
    """Train `Line`, validating every second step, and finish the tracking as cli/train.py does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    loggers = tracking.make_loggers(cfg, run_dir)
    trainer = pl.Trainer(
        max_steps=steps,
        logger=loggers,
        callbacks=[*tracking.callbacks(cfg), *extra],
        accelerator="cpu",
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader([{"image": torch.ones(1)} for _ in range(100)], batch_size=2)
    validation = torch.utils.data.DataLoader([torch.ones(1)], batch_size=1)
    module = Line(fail_at)
    try:
        trainer.fit(module, batches, validation, ckpt_path=ckpt_path)
    except RuntimeError:
        tracking.finish(loggers, [], {}, "failed")
        raise
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    content = trainer._checkpoint_connector.dump_checkpoint()
    for name in ("best.ckpt", "last.ckpt"):
        AtomicCheckpointIO().save_checkpoint(dict(content), checkpoint.with_name(name))
    tracking.finish(loggers, ROWS, METRICS, "finished", checkpoint.with_name(scored))
    return module.layer.weight.item()


def children(name):
    """Process ids of this process's children called `name`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if fields["PPid"].strip() == str(os.getpid()) and fields["Name"].strip() == name:
                found.append(int(status.parent.name))
    return found


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run folder below the working directory, whose own path carries a canary."""
    home = tmp_path / SECRET
    home.mkdir()
    monkeypatch.chdir(home)
    return home / "runs" / "table2" / "fv" / "lesion" / "seed0"


def curve(run_dir):
    with open(run_dir / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_offline_run_holds_everything(cfg, run_dir, offline_runs, capfd):
    fit(cfg, run_dir, steps=4)
    (run,) = offline_runs(run_dir)
    assert (run["project"], run["group"], run["job_type"]) == ("covidseg", "table2", "train")
    assert run["name"] == "fv/lesion/seed0"
    assert run["tags"] == ["table2", "fv", "lesion", "seed0", "extra"]
    assert run["config"]["model"] == {"_target_": "covidseg.nets.unet3d.UNet3D", "width": 8, "out_channels": 2}
    assert run["config"]["row"] == "fv"
    assert [row["train/loss"] for row in run["history"] if "train/loss" in row] != []
    assert {row["_step"] for row in run["history"] if "train/loss" in row} == {1, 2, 3, 4}
    assert {row["_step"] for row in run["history"] if "val/dice" in row} == {2, 4}
    assert run["summary"]["test/lesion/dice/mean"] == 0.5
    assert run["summary"]["parameters"] == 1234
    assert run["artifacts"][-1]["type"] == "model"
    assert run["artifacts"][-1]["files"] == ["last.ckpt"]  # the one that was scored, although there is a best one
    assert (
        load_checkpoint(run_dir / "checkpoints" / "last-weights.ckpt").keys().isdisjoint({"optimizer_states", "loops"})
    )
    assert run["exit"] == 0
    assert capfd.readouterr().out.strip().splitlines()[-1] == "wandb sync runs/table2/fv/lesion/seed0/wandb"


def test_overlays_and_case_table_are_stored(cfg, run_dir, offline_runs):
    fit(cfg, run_dir, steps=2)
    (run,) = offline_runs(run_dir)
    overlays = [row for row in run["history"] if any(key.startswith("val/overlay") for key in row)]
    assert [row["_step"] for row in overlays] == [2]
    media = {path.relative_to(run_dir / "wandb").parts[3] for path in run_dir.glob("wandb/*/files/media/*/**/*")}
    assert media >= {"val", "cases_0"} or list(run_dir.glob("wandb/*/files/media/table/*.json"))
    assert len(list(run_dir.glob("wandb/*/files/media/images/mask/**/*.png"))) == 2
    table = next(run_dir.glob("wandb/*/files/media/table/cases*.json")).read_text()
    assert "p01" in table and "p02" in table


def test_nothing_private_is_tracked(cfg, run_dir, monkeypatch, offline_runs):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 24 + "feedcafefeedcafe")
    monkeypatch.setattr(sys, "argv", ["train.py", f"data.root=/srv/{SECRET}"])
    fit(cfg, run_dir, steps=2)
    written = [path for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".ckpt"]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        for canary in (SECRET, "feedcafe", str(run_dir)):
            assert canary.encode() not in content, (path.name, canary)
    assert offline_runs(run_dir)[0]["host"] == ""


def test_resumed_run_continues_under_one_id(cfg, run_dir, offline_runs):
    fit(cfg, run_dir, steps=4)
    time.sleep(1.1)  # wandb's folders are named by the second
    fit(cfg, run_dir, steps=7, ckpt_path=run_dir / "checkpoints" / "best.ckpt")
    first, second = offline_runs(run_dir)
    assert first["id"] == second["id"]
    assert [row["_step"] for row in second["history"] if "train/loss" in row] == [5, 6, 7]
    assert [int(row["step"]) for row in curve(run_dir)] == [1, 2, 3, 4, 5, 6, 7]


def test_run_started_over_elsewhere_has_another_id(cfg, run_dir, tmp_path):
    ids = []
    for folder in (run_dir, tmp_path / "b" / "table2" / "fv" / "lesion" / "seed0"):
        ids.append(tracking.make_loggers(cfg, folder)[0].version)
    assert ids[0] != ids[1]


def test_curves_drop_what_a_resumed_run_does_again(run_dir):
    first = tracking.CurvesCSV(run_dir)
    for step in range(6):
        first.log_metrics({"loss": -1.0 - step}, step)
    first.log_metrics({"val/dice": 0.5}, 3)
    first.save_now()
    second = tracking.CurvesCSV(run_dir)
    second.log_metrics({"loss": 30.0}, 4)
    second.finalize("success")
    rows = curve(run_dir)
    assert [(row["step"], row["loss"]) for row in rows[-2:]] == [("3", "-4.0"), ("4", "30.0")]
    assert rows[3]["val/dice"] == "0.5" and len(rows) == 5


def test_failed_and_interrupted_runs_say_so(cfg, run_dir, offline_runs):
    with pytest.raises(RuntimeError):
        fit(cfg, run_dir, steps=5, fail_at=2)
    time.sleep(1.1)  # wandb's folders are named by the second
    loggers = tracking.make_loggers(cfg, run_dir)
    tracking.finish(loggers, [], {}, "interrupted")
    failed, interrupted = offline_runs(run_dir)
    assert (failed["exit"], failed["preempting"], failed["artifacts"]) == (1, False, [])
    assert (interrupted["exit"], interrupted["preempting"]) == (255, True)


def test_broken_tracking_leaves_the_training_as_it_is(cfg, run_dir, monkeypatch):
    torch.manual_seed(0)
    weight = fit(OmegaConf.merge(cfg, {"logger": {"backend": "csv"}}), run_dir, steps=4)
    told = []

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    for target, name in ((tracking.WandbTracker, "_init"), (wandb.Run, "log")):
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True, action="always") as heard:
            patch.setattr(target, name, broken)
            torch.manual_seed(0)
            assert fit(cfg, run_dir.parent / f"seed0-{name}", steps=4) == weight
        told += [str(warning.message) for warning in heard if "tracking stopped" in str(warning.message)]
    assert len(told) == 2 and all("No space left" in line for line in told)


def test_online_run_that_cannot_start_goes_on_offline(cfg, run_dir, monkeypatch, offline_runs, recwarn, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    cfg.logger.mode = "auto"
    begin = tracking.WandbTracker._init

    def no_server(self, mode):
        if mode == "online":
            raise TimeoutError("no answer")
        return begin(self, mode)

    monkeypatch.setattr(tracking.WandbTracker, "_init", no_server)
    fit(cfg, run_dir, steps=2)
    assert len(offline_runs(run_dir)) == 1
    assert any("the server cannot be used" in str(warning.message) for warning in recwarn)
    assert "wandb sync runs/table2/fv/lesion/seed0/wandb" in capfd.readouterr().out


def test_service_that_dies_during_the_run_does_not_end_it(cfg, run_dir, monkeypatch, recwarn, capfd):
    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                for process in children("wandb-core"):
                    os.kill(process, signal.SIGKILL)

    fit(cfg, run_dir, steps=6, extra=[Kill()])
    assert [int(row["step"]) for row in curve(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert any("Weights & Biases: tracking stopped" in str(warning.message) for warning in recwarn)
    assert "wandb sync" in capfd.readouterr().out


def test_unwritable_curves_cost_one_warning(cfg, run_dir, recwarn):
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.csv").mkdir()
    fit(OmegaConf.merge(cfg, {"logger": {"backend": "csv"}}), run_dir, steps=3)
    assert sum("metrics.csv: tracking stopped" in str(warning.message) for warning in recwarn) == 1


def test_without_a_key_auto_is_offline_and_with_one_online(cfg, monkeypatch, tmp_path):
    assert chosen_mode("auto") == chosen_mode("online") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert (chosen_mode("auto"), chosen_mode("offline")) == ("online", "offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert chosen_mode("auto") == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example login user password " + "k" * 40)
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert chosen_mode("auto") == "online"


def test_sync_command_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sync_command(tmp_path / "a b" / "wandb") == "wandb sync 'a b/wandb'"


def test_scrubbing():
    config = OmegaConf.create(
        {
            "a": {"api_key": 1, "apiKey": 1, "accessToken": 1, "PASSWORD": 1, "client-secret": 1, "monkey": 2},
            "env": "${oc.env:HOME}",
            "points_at_env": "${env}",
            "default_from_env": "${oc.select:nothing,${oc.env:HOME}}",
            "default": "${oc.select:nothing,3}",
            "root": "x",
            "text": "see /srv/data/x.nii, ok",
            "ratio": "1/2 and a / b",
            "none": None,
        }
    )
    assert scrubbed(config) == {
        "a": {"monkey": 2},
        "env": "<resolver>",
        "points_at_env": "<resolver>",
        "default_from_env": "<resolver>",
        "default": 3,
        "text": "see <path>, ok",
        "ratio": "1/2 and a / b",
        "none": None,
    }
    assert scrub_text("open('/home/jo/x') failed") == "open('<path>') failed"


def test_pictures_name_the_classes_of_any_task():
    joint = {"lung": {"channels": [1, 2]}, "lesion": {"channels": [2]}}
    assert tracking.class_names(joint) == {1: "lung", 2: "lesion"}
    assert tracking.class_names({"lesion": {"channels": [1]}}) == {1: "lesion"}


def test_picture_takes_the_slice_with_most_reference():
    reference = np.zeros((4, 5, 5), np.uint8)
    reference[1, 0, 0], reference[2, :2, :2] = 1, 1
    image = np.full((4, 5, 5), 250, np.int16)
    image[2] = -1250
    drawn = picture({"case": "p", "image": image, "reference": reference, "prediction": reference}, {1: "lesion"})
    assert drawn["caption"] == "p, slice 2"
    assert drawn["pixels"].max() == 0 and drawn["masks"]["reference"][0].sum() == 4


def test_sweep_summary_is_one_run_per_folder(cfg, run_dir, offline_runs):
    rows = [{"row": "fv", "lesion dice": 0.7}, {"row": "unet4", "lesion dice": None}]
    for _ in range(2):
        time.sleep(1.1)  # wandb's folders are named by the second
        tracking.log_sweep_summary(cfg.logger, "table2", rows, run_dir)
    first, second = offline_runs(run_dir)
    assert first["id"] == second["id"]
    assert (first["job_type"], first["group"], first["exit"]) == ("summary", "table2", 0)
    assert list(run_dir.glob("wandb/*/files/media/table/table*.json"))


def test_other_ranks_track_nothing(cfg, run_dir, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero.rank_zero_only.rank", 1)
    fit(cfg, run_dir, steps=2)
    assert not (run_dir / "wandb").exists()
    assert not (run_dir / "metrics.csv").exists()


@pytest.fixture(params=["refuses", "hangs", "fails"])
def server(request):
    """A W&B server that cannot be used: nothing listens, it accepts and never answers, or it says 500 to everything."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    open_connections = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.append(connection)
            if request.param == "fails":
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()

    if request.param == "refuses":
        listener.close()
    else:
        threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{port}"
    listener.close()
    for connection in open_connections:
        connection.close()


@pytest.mark.slow
def test_useless_server_costs_little_and_the_run_is_kept_offline(cfg, run_dir, server, offline_runs, tmp_path):
    cfg.logger.mode, cfg.logger.timeout_s = "auto", 3
    run_dir.mkdir(parents=True)
    OmegaConf.save(cfg, tmp_path / "cfg.yaml")
    script = textwrap.dedent(
        f"""
        from omegaconf import OmegaConf
        from covidseg import tracking
        loggers = tracking.make_loggers(OmegaConf.load({str(tmp_path / "cfg.yaml")!r}), {str(run_dir)!r})
        for logger in loggers:
            logger.log_metrics({{"loss": 0.5}}, 0)
        tracking.finish(loggers, [], {{}}, "finished")
        """
    )
    environment = os.environ | {"WANDB_BASE_URL": server, "WANDB_API_KEY": "k" * 40, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 45
    (run,) = offline_runs(run_dir)
    assert [row["loss"] for row in run["history"]] == [0.5]
    assert "wandb sync runs/table2/fv/lesion/seed0/wandb" in done.stdout
    assert "tracking offline" in done.stderr


MANIFEST = {"data": {"name": "folder", "hash": "0123456789ab"}, "cases": {"train": 4, "test": 2}, "parameters": 1234}


def test_a_run_names_its_data_its_row_and_its_best_values(cfg, run_dir, offline_runs):
    """What Weights & Biases lists of a run: the data set it used, its model under the row's name, the highest Dice."""
    run_dir.mkdir(parents=True)
    weights = run_dir / "checkpoints" / "last.ckpt"
    weights.parent.mkdir()
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"network.w": torch.ones(2)}}, weights)
    loggers = tracking.make_loggers(cfg, run_dir)
    tracking.log_manifest(loggers, MANIFEST, run_dir)
    for step, dice in enumerate([0.2, 0.7, 0.4], start=1):
        loggers[0].log_metrics({"val/dice": dice, "train/loss": 1 - dice}, step)
    tracking.finish(loggers, ROWS, METRICS, "finished", weights)
    (run,) = offline_runs(run_dir)
    assert run["best"]["val/dice"] == "max" and run["best"]["train/loss"] == "min"
    (data,) = [one for one in run["artifacts"] if one["type"] == "dataset"]
    assert data["name"] == "folder-0123456789ab" and data["files"] == ["dataset.json"]
    assert data["metadata"]["cases"] == {"train": 4, "test": 2}
    (model,) = [one for one in run["artifacts"] if one["type"] == "model"]
    assert "fv" in model["aliases"] and "latest" in model["aliases"]
    assert "url" not in json.loads((run_dir / "tracking.json").read_text()), "there is none offline"


def test_the_address_of_a_run_is_kept_and_printed(cfg, run_dir, monkeypatch, capfd):
    used = []

    def taken(self):
        self._run, self.online = self._begin("offline", self.timeout_s), True
        self.address = "https://wandb.example/covidseg/runs/1"

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(tracking.WandbTracker, "_start_online", taken)
    monkeypatch.setattr(tracking.WandbTracker, "use_data", lambda self, name, facts: used.append(name))
    cfg.logger.mode = "auto"
    run_dir.mkdir(parents=True)
    loggers = tracking.make_loggers(cfg, run_dir)
    tracking.log_manifest(loggers, MANIFEST, run_dir)
    tracking.finish(loggers, [], {}, "finished")
    assert capfd.readouterr().out.strip().splitlines()[-1] == "Weights & Biases: https://wandb.example/covidseg/runs/1"
    kept = json.loads((run_dir / "tracking.json").read_text())
    assert used == ["folder-0123456789ab"] and kept["url"] == "https://wandb.example/covidseg/runs/1"
    assert tracking.make_loggers(cfg, run_dir)[0].version == kept["run_id"], "resumed under the same id"
