"""Run folders as training leaves them, with scores drawn instead of trained; a browser to look at their page with."""

import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from covidseg.evaluation.results import COLUMNS, summarise_sets
from covidseg.runs.folder import RunFolder
from covidseg.runs.slices import Slice
from covidseg.system.files import write_csv, write_json
from scored import SPACING, case_row


def block(shape, corner, size):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))] = 1
    return mask


@pytest.fixture
def write_run(tmp_path):
    """`write_run("table2", "fv", seed=1, error=2)`: a finished run whose masks are shifted by `error` voxels."""

    def write(table, row, task="lesion", seed=0, fold=None, error=1, cases=6, sets=("test",), **options):
        name = f"seed{seed}" + ("" if fold is None else f"-fold{fold}")
        folder = tmp_path / "runs" / table / row / task / name
        structures = options.get("structures") or (("lesion", "lung") if task == "joint" else (task,))
        shape = (12, 24, 24)
        rows = []
        for set_name in sets:
            for index in range(cases):
                size = (4 + index % 3, 6 + index % 5, 6)
                reference = block(shape, (3, 6, 6), size)
                prediction = block(shape, (3, 6 + (error + seed + index) % 6, 6), size)
                if index in options.get("empty", ()):
                    reference[:] = 0
                if index in options.get("silent", ()):
                    prediction[:] = 0
                case = f"{options.get('prefix', 'p')}{index:02d}"
                for structure in structures:
                    rows.append(case_row(f"{set_name[0]}{case}", structure, prediction, reference, set_name))
                if options.get("slices") and index == 1:
                    image = np.full(shape, -850, np.int16)
                    image[reference == 1] = -300
                    for structure in structures:
                        kept = Slice.cut(
                            f"{set_name[0]}{case}", structure, image, reference == 1, prediction == 1, SPACING
                        )
                        kept.save(folder)
        write_csv(folder / "cases.csv", rows, COLUMNS)
        attempt = {
            "git": {"commit": "0" * 40, "dirty": False},
            "device": "cpu",
            "processes": 1,
            "versions": {"torch": "2"},
        }
        data = {"name": "phantom", "hash": options.get("data", "d0")}
        protocol = {"protocol": options["protocol"]} if "protocol" in options else {}
        if "structures" in options:
            named = {structure: {"channels": [1]} for structure in structures}
            write_json(folder / "config.yaml", {"task": {"name": task, "structures": named}})  # JSON is YAML
        write_json(folder / "manifest.json", {"data": data, **protocol, "attempts": [attempt]})
        curve = [{"step": step, "epoch": 0, "train/loss": 1 / (1 + step), "val/dice": 0.5} for step in range(5)]
        write_csv(folder / "metrics.csv", curve, ("step", "epoch", "train/loss", "val/dice"))
        write_json(
            folder / "metrics.json",
            {"sets": summarise_sets(rows), "parameters": 34_200_000, "multiply_adds": 700_000_000_000},
        )
        return folder

    return write


@pytest.fixture
def write_unfinished(tmp_path):
    """`write_unfinished("table2", "fv", "failed", reason=...)`: a run folder that holds no results."""

    def write(table, row, state, task="lesion", seed=0, **status):
        folder = tmp_path / "runs" / table / row / task / f"seed{seed}"
        folder.mkdir(parents=True)
        RunFolder(folder).write_status(state, **status)
        return folder

    return write


@pytest.fixture(scope="session")
def chromium():
    if not shutil.which("chromium") and os.environ.get("COVIDSEG_INSTALL_CHROMIUM") == "1":
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"
        subprocess.run(["bash", "-c", install], capture_output=True, timeout=600)
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed (COVIDSEG_INSTALL_CHROMIUM=1 installs Debian's package)")

    def show(file, *options):
        """(the document as the browser sees it in the end, what it said)"""
        profile = f"--user-data-dir={file.parent / 'profile'}"
        quiet = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
        ]
        command = ["chromium", *quiet, profile, *options, "--dump-dom", file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, said

    return show


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axe")
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        folder,
        "axe-core-python==0.1.0",
    ]
    subprocess.run(fetch, capture_output=True, timeout=120)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip("axe-core cannot be fetched here")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("axe.min.js")]
        return wheel.read(name).decode()
