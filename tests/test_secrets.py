"""K7: what is secret or private stands in no file that the suite writes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.system.scrub import secret_option

TYPED = "typed-5f1c9e2ab7"  # on the command line
HELD = "held-0c77ad31f6e98b2455aa"  # by an environment variable
KEY = "1" * 20 + "canary" + "2" * 14  # WANDB_API_KEY
HOME = "home-of-user-8d2e"


@pytest.fixture
def command(tmp_path):
    """`command("train", "row=a")` as a user with secrets in the environment starts it -> the finished process"""
    home = tmp_path / HOME
    home.mkdir()
    secrets = {"WANDB_API_KEY": KEY, "MY_SECRET_TOKEN": HELD, "HOME": str(home), "OMP_NUM_THREADS": "1"}

    def run(program, *options):
        line = [sys.executable, "-m", f"covidseg.cli.{program}", *options]
        return subprocess.run(line, cwd=tmp_path, env=os.environ | secrets, capture_output=True, text=True, timeout=200)

    return run


def files_with(folder, *canaries):
    return {
        f"{path.relative_to(folder)}: {canary}"
        for path in folder.rglob("*")
        if path.is_file()
        for canary in canaries
        if canary.encode() in path.read_bytes()
    }


def test_k7_a_secret_inside_a_value_is_refused_too():
    assert secret_option("logger.tags={name: x, api_token: y}") == "logger.tags"
    assert secret_option("+my.options={wandbKey: y}") == "+my.options"


@pytest.mark.parametrize("option", ["+api_token", "+my_password", "+logger.wandb_key", "hydra.job.env_set.API_KEY"])
def test_k7_a_secret_on_the_command_line_is_refused_before_anything_is_written(command, tmp_path, option):
    done = command("train", "-m", "seed=0,1", f"{option}={TYPED}")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {option.lstrip('+')}: a secret on the command line")
    assert TYPED not in done.stdout + done.stderr and not files_with(tmp_path, TYPED)


@pytest.mark.slow
def test_k7_no_secret_stands_in_any_file(command, tmp_path, train_options, prepared):
    options = [option for option in train_options if not option.startswith(("row=", "logger="))]
    options += ["training.max_steps=2", "training.validate_every=2", f"logger.tags=[{HELD}]"]
    scan = sitk.GetImageFromArray(np.load(prepared / "c6" / "image.npy"))
    scan.SetSpacing((5.0, 5.0, 6.0))
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(scan, str(tmp_path / "scans" / "one.nii.gz"))
    run = "run=runs/t/single/lesion/seed0"
    for program, *arguments in (
        ("train", *options, "row=single", "logger=wandb_offline"),
        ("train", "-m", *options, "row=a,b", "logger=wandb_offline"),
        ("evaluate", run, "output=scored"),
        ("predict", run, "input=scans", "output=masks"),
        ("report", "table=t"),
    ):
        done = command(program, *arguments)
        assert done.returncode == 0, done.stderr
        assert HELD not in done.stdout + done.stderr and KEY not in done.stdout + done.stderr
    written = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert written >= {".wandb", ".json", ".yaml", ".csv", ".ckpt", ".log", ".html"}
    assert not files_with(tmp_path, HELD, KEY)
    private = [*tmp_path.rglob("*.wandb"), *tmp_path.rglob("manifest.json"), *tmp_path.rglob("wandb-metadata.json")]
    assert private and not [path for path in private if HOME.encode() in path.read_bytes()]


def test_k7_options_that_only_sound_like_secrets_pass():
    for argument in ("data.source.labels={1: lesion}", "hydra.launcher.account=lab", "name=tokens", "row=key-1"):
        assert secret_option(argument) is None
