"""The README says what is there: its commands exist, its table is the measured one, its Python runs."""

import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from covidseg.config.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(text):
    """Shell lines of the bash blocks and of inline code that start with python or make, comments dropped."""
    text = re.sub(r"<[^>\n]*>", "placeholder", text)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`((?:python|make) [^`]+)`", text)
    return sorted({shlex.join(shlex.split(line, comments=True)) for line in lines if re.match(r"python |make ", line)})


@pytest.mark.parametrize("command", [c for c in commands(README) if c.startswith("make ")])
def test_make_targets_exist(command):
    assert shlex.split(command)[1] in MAKE_TARGETS


@pytest.mark.parametrize("command", [c for c in commands(README) if c.startswith("python src/")])
def test_options_compose(command, tmp_path):
    """Hydra composes each command as it is written."""
    script, *arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_python_block_runs(monkeypatch, make_run, write_scan, tmp_path):
    import torch

    import covidseg

    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = make_run("lesion", 0)
    write_scan(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    load = covidseg.load
    monkeypatch.setattr(covidseg, "load", lambda path: load(run), raising=False)
    names = {"x": torch.zeros(1, 1, 16, 16, 16)}
    exec(textwrap.dedent(block).replace("width=64", "width=4"), names)
    assert names["logits"].shape == (1, 2, 16, 16, 16)
    assert names["mask"].GetDimension() == 3
