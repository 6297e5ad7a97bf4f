"""`python src/benchmark.py gpu`, rehearsed in small on whatever there is, a CPU in the tests."""

import subprocess
import sys

import pytest
import torch

from covidseg.benchmark.contest import OURS
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.config.paths import ROOT
from covidseg.system.files import read_json
from reading import SMALL_SUITES


def benchmark(cwd, *options):
    command = [sys.executable, str(ROOT / "src" / "benchmark.py"), "gpu", *SMALL_SUITES["gpu"], *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=570)


def parts(cwd):
    return read_json(cwd / "runs" / "benchmark" / "gpu.json")["parts"]


def test_parts_measured_later_join_those_that_the_file_holds(tmp_path):
    first = benchmark(tmp_path, "gpu.parts=[profile,layers]", "gpu.model=unet3d")
    assert first.returncode == 0, first.stderr
    before = parts(tmp_path)
    assert list(before) == ["profile", "ceilings", "layers"]  # layers are shares of a ceiling
    rows = before["profile"]["rows"]
    assert any(row["operator"] == "aten::convolution_backward" for row in rows)
    assert [row["milliseconds"] for row in rows] == sorted((row["milliseconds"] for row in rows), reverse=True)
    layers = before["layers"]["rows"]
    assert all(0 < row["error"] < 0.02 and row["bfloat16"] > 0 and row["count"] > 0 for row in layers)
    second = benchmark(tmp_path, "gpu.parts=[rows]", "gpu.rows=[table1/unet3d,table3/segresnet]")
    assert second.returncode == 0, second.stderr
    after = parts(tmp_path)
    assert after["layers"] == before["layers"]
    assert [row["row"] for row in after["rows"]["rows"]] == ["table1/unet3d", "table3/segresnet"]
    text = (tmp_path / "runs" / "benchmark" / "gpu.md").read_text()
    assert all(f"### {part['title']}\n" in text for part in after.values()) and str(tmp_path) not in text


def test_nothing_is_begun_once_the_time_is_over(tmp_path):
    done = benchmark(tmp_path, "gpu.minutes=0", "gpu.parts=[step]")
    assert done.returncode == 0 and "step: no time" in done.stdout
    assert not (tmp_path / "runs" / "benchmark" / "gpu.json").exists()


def test_a_part_that_is_not_there_is_one_line(tmp_path):
    done = benchmark(tmp_path, "gpu.parts=[steps]")
    assert done.returncode == 2 and "gpu.parts=['steps']: there is no such part -> some of ceilings" in done.stderr


@pytest.mark.slow
def test_steps_runs_and_a_scan(tmp_path):
    done = benchmark(tmp_path, "gpu.parts=[step,scan,runs]")
    assert done.returncode == 0, done.stderr
    found = parts(tmp_path)
    ways = {row["way"]: row for row in found["step"]["rows"]}
    assert ways["covidseg"]["kind"] == OURS and ways["covidseg"]["ratio"] == 1
    assert "MONAI's way" in ways and ("nnU-Net's way" in ways or "not installed" in found["step"]["told"][0])
    for run in found["runs"]["rows"]:
        assert sum(run[part] for part in ("loader", "copy", "step", "validation", "checkpoint")) == pytest.approx(1)
    scan = found["scan"]["rows"]
    assert [row["what"] for row in scan][:3] == ["read", "onto the network's grid", "network, covidseg"]
    assert all(row["seconds"] >= 0 for row in scan) and "100.00% of the voxels alike" in scan[3]["what"]


def test_a_value_that_a_row_has_not_is_an_empty_cell():
    sheet = Sheet("t", {"a": ("A", "s"), "b": ("B", ".1f")}, [{"a": "x", "b": 1.25}, {"a": "y"}], ["told"])
    assert sheet.markdown == "### t\n\n| A | B |\n|---|--:|\n| x | 1.2 |\n| y |  |\n\ntold"


def test_a_compiled_step_is_measured_beside_the_plain_one(monkeypatch):
    """Compiling takes minutes here: that it is asked for is looked at, and its backend is left out."""
    from hydra import compose, initialize_config_dir

    from covidseg.benchmark.gpu import steps
    from covidseg.config.paths import CONF

    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    monkeypatch.setattr(torch, "compile", lambda part: compiled.append(part) or part)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("benchmark", ["suite=gpu", *SMALL_SUITES["gpu"]])
        sheet = steps.compiled(cfg.gpu, 1.0)
    assert compiled[0] == "COVIDSegNet"
    assert [row["way"] for row in sheet.rows][:2] == ["covidseg", "covidseg, training.compile=true"]
