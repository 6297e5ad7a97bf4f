import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from covidseg.runs.folder import RunFolder, config_hash, plain, run_dir
from covidseg.sweep.rows import Row, State
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.files import write_json


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        (["model=covidsegnet"], "covidsegnet-fv-paspp"),
        (["model=covidsegnet", "model/variation=none", "model/pyramid=none"], "covidsegnet-none-none"),
        (["model=unet3d"], "unet3d"),
        (["model=unet3d", "model/variation=fv", "model/pyramid=paspp"], "unet3d-fv-paspp"),
        (["model=vnet", "model/variation=fv_ungated", "model.width=8"], "vnet-fv_ungated"),
        (["model=unetpp", "model/pyramid=resaspp"], "unetpp-resaspp"),
        (["model=fcn"], "fcn"),
    ],
)
def test_a_run_is_named_after_its_network_and_blocks(train_config, choices, name):
    cfg = train_config("name=train", "row=null", *choices)
    assert run_dir(cfg).parts[-4:] == ("train", name, "lesion", "seed0")


def test_folds_and_rows_name_their_folder(train_config):
    assert run_dir(train_config("fold=2", "seed=7", "task=lung")).parts[-4:] == ("t", "r", "lung", "seed7-fold2")


@pytest.mark.parametrize("override", ["name=../../etc", "row=a/b", "'row=\"x=1\"'", "name=.hidden"])
def test_names_that_leave_the_folder_are_refused(train_config, override):
    with pytest.raises(BadInput, match="cannot name a folder"):
        run_dir(train_config(override.strip("'")))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("training.max_steps=99", False),
        ("optimizer.lr=0.5", False),
        ("model.width=4", False),
        ("data.window=[-1000,400]", False),
        ("seed=1", False),
        ("augment=strong", False),
        ("trainer.devices=6", True),
        ("logger=wandb_offline", True),
        ("paths.runs=elsewhere", True),
        ("data.root=elsewhere", True),
        ("training.prefetch=9", True),
        ("resume=require", True),
        ("debug=true", True),
    ],
)
def test_the_hash_tells_what_changes_a_result(train_config, override, same):
    assert (config_hash(train_config()) == config_hash(train_config(override))) is same


def test_the_hash_survives_the_file(train_config):
    cfg = train_config()
    folder = RunFolder(run_dir(cfg))
    assert folder.config_hash is None
    folder.claim(cfg)
    assert folder.config_hash == config_hash(cfg)
    folder.claim(cfg)


@pytest.mark.parametrize("work", ["metrics.json", "checkpoints/last.ckpt"])
def test_another_configuration_is_refused_with_the_difference(train_config, work):
    folder = RunFolder(run_dir(train_config()))
    folder.claim(train_config())
    (folder.path / work).parent.mkdir(exist_ok=True)
    (folder.path / work).touch()
    other = train_config("training.max_steps=99")
    with pytest.raises(BadInput, match=r"training\.max_steps is 8 there, 99 here.*choose another"):
        RunFolder(run_dir(other)).claim(other)
    assert folder.config_hash == config_hash(train_config())


def test_a_start_that_came_to_nothing_leaves_the_name_to_the_next(train_config):
    folder = RunFolder(run_dir(train_config()))
    folder.claim(train_config())
    folder.write_status("failed", reason="a wrong option")
    other = train_config("training.max_steps=99")
    folder.claim(other)
    assert folder.config_hash == config_hash(other) and folder.status is None


def test_secrets_do_not_reach_the_file(train_config, monkeypatch):
    monkeypatch.setenv("CANARY", "canary-in-the-environment")
    place = "paths.data=${oc.env:CANARY}/x"
    cfg = train_config(place, "+logger.api_key=canary-in-a-key", "paths.results=${paths.data}/y")
    folder = RunFolder(run_dir(cfg))
    folder.claim(cfg)
    assert "canary" not in folder.config_path.read_text()
    assert plain(cfg)["paths"]["results"] == "${oc.env:CANARY}/x/y"
    assert OmegaConf.to_container(folder.config, resolve=True)["paths"]["data"] == "${oc.env:CANARY}/x"  # text
    assert folder.config_hash == config_hash(cfg)


def test_status_keeps_what_is_not_said_again(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.status is None
    folder.write_status("running", step=3, max_steps=9, patches_per_second=1.5)
    folder.write_status("failed", reason="why")
    assert folder.status | {"updated": 0} == {
        "state": "failed", "step": 3, "max_steps": 9, "patches_per_second": 1.5, "reason": "why", "updated": 0,
        "pid": os.getpid(),
    }  # fmt: skip
    folder.write_status("running")
    assert "reason" not in folder.status


def _hold(path, held):
    with RunFolder(path).lock():
        held.set()
        signal.pause()


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    folder = RunFolder(tmp_path)
    assert folder.is_locked()
    with pytest.raises(EnvironmentFault, match="another process"), folder.lock():
        pass
    process.kill()
    process.join()
    assert not folder.is_locked()
    with folder.lock():
        assert folder.is_locked()


def test_looking_at_runs_needs_no_torch():
    heavy = "any(name in sys.modules for name in ('torch', 'pytorch_lightning'))"
    code = f"import sys, covidseg.runs.folder; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _made_with(cfg, finished):
    """A run of six processes as its manifest tells it."""
    folder = RunFolder(run_dir(cfg))
    folder.claim(cfg)
    (folder.checkpoints).mkdir()
    (folder.checkpoints / "last.ckpt").touch()
    batch = 6 * cfg.training.batch_size
    attempt = {"processes": 6, "precision": "bf16-mixed", "effective_batch_size": batch}
    write_json(folder.path / "manifest.json", {"attempts": [attempt]})
    if finished:
        write_json(folder.path / "metrics.json", {"sets": {"test": {"lesion": {"n": 1}}}})
    return folder, batch


@pytest.mark.parametrize("finished", [True, False])
def test_other_resources_are_refused_by_run_and_sweep_and_the_remedy_works(train_config, finished):
    six = ["trainer.devices=6", "trainer.precision=auto"]
    folder, batch = _made_with(train_config(*six), finished)
    for options, said in (
        (["trainer.devices=1", "trainer.precision=auto"], f"effective batch {batch} there, {batch // 6} here"),
        (["trainer.devices=6", "trainer.precision=32-true"], "precision bf16-mixed there, 32-true here"),
    ):
        cfg = train_config(*options)
        with pytest.raises(BadInput, match=f"{said}.*name=") as error:
            folder.claim(cfg)
        row = Row.plan([], cfg)
        row.judge()
        assert (row.state, row.reason) == (State.FAILED, str(error.value))
    for options in (
        six,
        ["trainer.devices=auto", "trainer.precision=auto"],
        ["trainer.devices=6", "trainer.precision=bf16"],
    ):
        cfg = train_config(*options)
        folder.claim(cfg)
        row = Row.plan([], cfg)
        row.judge()
        assert row.state is (State.DONE if finished else State.WAITING)
    other = train_config("name=other", "trainer.devices=1")
    RunFolder(run_dir(other)).claim(other)


def test_a_resume_with_auto_keeps_the_precision_and_the_devices_it_began_with(train_config):
    from covidseg.training.parts import _devices, _precision

    cfg = train_config("trainer.devices=6", "trainer.precision=auto")
    assert _precision(cfg.trainer, RunFolder(run_dir(cfg))) == "32-true"
    folder, _ = _made_with(cfg, False)
    assert _precision(cfg.trainer, folder) == "bf16-mixed"
    assert _devices(train_config("trainer.devices=auto").trainer, folder) == 6
    assert _devices(train_config("trainer.devices=2").trainer, folder) == 2  # is refused when the attempt is recorded
