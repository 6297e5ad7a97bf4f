"""The container's recipe, as far as it can be told without a builder; and where the suite does not run."""

import re
import shlex
import subprocess
import sys

import pytest

from covidseg.cli import COMMANDS
from covidseg.config.paths import ROOT

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [shlex.split(line) for line in LINES if line and not line.startswith("#")]


def of(name):
    return [step[1:] for step in STEPS if step[0] == name]


def test_every_step_is_one_that_docker_knows_and_the_base_is_a_python_the_package_takes():
    assert {step[0] for step in STEPS} <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    (base,) = of("FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base[0])[1]
    wanted = re.search(r'requires-python = ">=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    first, beyond, own = (tuple(map(int, text.split("."))) for text in (*wanted.groups(), version))
    assert first <= own < beyond


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for *sources, target in of("COPY"):
        assert target
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignored
    assert "conf/local/*" in ignored and "experiments/*/results*" in ignored and ignored[0] == "*"


def test_it_installs_with_the_constraints_and_starts_the_command():
    (install,) = of("RUN")
    assert install[:2] == ["pip", "install"] and install[install.index("-c") + 1] == "constraints.txt"
    (extra,) = re.findall(r"\.\[(\w+)\]", " ".join(install))
    assert f"{extra} = [" in (ROOT / "pyproject.toml").read_text()
    assert of("ENTRYPOINT") == [["[covidseg]"]]
    examples = re.findall(r"covidseg (\w+) \w+=", (ROOT / "Dockerfile").read_text())
    assert examples and set(examples) <= set(COMMANDS)


@pytest.mark.parametrize("module", ["covidseg.cli", "covidseg.cli.train"])
def test_a_system_without_posix_locks_is_refused_in_one_line(module):
    code = f"import os, pathlib, importlib; os.name = 'nt'; importlib.import_module('{module}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr.strip().startswith("error: this system: has no POSIX file locks") and "WSL 2" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
