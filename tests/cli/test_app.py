"""Wrong options: one line on stderr that says what to write instead, exit status 2, and nothing left behind."""

import errno
import subprocess
import sys

import pytest

from covidseg.cli.app import one_line_errors
from covidseg.config.paths import ROOT


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / "src" / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "found", "remedy"),
    [
        (["model=covidsegnt"], "model=covidsegnt: there is no such choice", "did you mean covidsegnet?"),
        (["experiments/table2=cep"], "experiments/table2=cep: there is no such choice", "did you mean ceb?"),
        (["training.max_step=5"], "training.max_step: there is no such option", "did you mean training.max_steps?"),
        (["max_steps=5"], "max_steps: there is no such option", "did you mean training.max_steps?"),
        (["model=fcn", "model/variation=fv"], "model/variation: the chosen network has no such slot", "covidsegnet"),
        (["data.root=a b=c{"], "data.root=a b=c{: is not of the form key=value", "quote"),
    ],
)
def test_j09_wrong_option(tmp_path, arguments, found, remedy):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert found in done.stderr
    assert remedy in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_group_of_another_command_is_not_offered(tmp_path):
    command = [sys.executable, str(ROOT / "src" / "prepare.py"), "recipe=smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe: there is no such option")
    assert "did you mean recipe" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C -> the same command starts again"),
        (OSError(errno.EROFS, "", "/srv/runs/.sweeps"), 3, "error: .sweeps: Read-only file system -> "),
        (MemoryError(), 3, "error: memory: exhausted"),
    ],
)
def test_what_no_component_knew_better_is_one_line_too(capsys, error, status, line):
    with pytest.raises(SystemExit) as left, one_line_errors(debug=False):
        raise error
    assert left.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(line) and len(said.splitlines()) == 1 and "/srv" not in said


def test_debug_shows_the_traceback(tmp_path):
    done = run("model=covidsegnt", "debug=true", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_needs_no_data_and_leaves_no_litter(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "model: covidsegnet" in done.stdout
    assert list(tmp_path.iterdir()) == []
