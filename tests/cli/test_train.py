"""The command itself: exit status and the one line of each refusal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from covidseg.runs.folder import RunFolder


@pytest.fixture
def command(in_process, train_options):
    """`command("seed=1")` -> (exit status, stdout, stderr) of `train.py` with the small data set, in `tmp_path`."""
    return lambda *arguments: in_process("train", *train_options, *arguments)


def test_a_run_from_the_command_line_and_again(command, tmp_path):
    status, out, err = command()
    assert status == 0, err
    assert "4 training cases" in out and "step 8/8" in out and "patches/s" in out and "validation Dice" in out
    assert "HD95" in out  # the table of the held-out cases
    assert RunFolder(tmp_path / "runs/t/r/lesion/seed0").is_finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # no outputs/, no lightning_logs/
    status, out, _ = command()
    assert status == 0 and "finished: nothing to do" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=unet3"], "did you mean unet3d"),
        (["training.max_step=3"], "did you mean training.max_steps"),
        (["model=fcn", "model/pyramid=aspp"], "no such slot"),
        (["training.max_steps=many"], "training.max_steps"),
        (["fold=9"], "fold=9"),
        (["optimizer._target_=os.system"], "os.system"),
        (["training.patch_size_zyx=[16,16]"], "training.patch_size_zyx"),
        (["data.prepared=nowhere"], "nowhere"),
        (["trainer.accelerator=quantum"], "trainer"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(command, arguments, message):
    status, _, err = command(*arguments)
    assert status == 2 and message in err
    assert err.count("error:") == 1 and "Traceback" not in err


def test_the_script_works_from_a_bare_clone_elsewhere(tmp_path):
    script = Path(__file__).parents[2] / "src/train.py"
    done = subprocess.run(
        [sys.executable, str(script), "model=typo"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: model=typo")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_told_without_torch(command, train_options, tmp_path):
    """Half a second instead of five, which a sweep that is started again pays for every run."""
    assert command()[0] == 0
    code = (
        "import sys; from covidseg.cli.train import main; main()\n"
        "assert not {'torch', 'SimpleITK', 'pytorch_lightning'} & set(sys.modules), 'imported'"
    )
    again = [sys.executable, "-c", code, *train_options]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "finished: nothing to do" in done.stdout, done.stderr
    other = subprocess.run([*again, "training.max_steps=9"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert other.returncode == 2 and "holds a run of another configuration" in other.stderr
