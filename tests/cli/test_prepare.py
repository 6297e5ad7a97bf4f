"""`python src/prepare.py` as a user meets it: table, exit status, one-line errors."""

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console

from covidseg.cli.prepare import show
from covidseg.config.paths import ROOT
from covidseg.data.prepare.run import Outcome
from covidseg.system.errors import BadInput


def run(*arguments, cwd):
    small = ["data.spacing_zyx=[9,9,9]", "data.workers=0"]
    command = [sys.executable, str(ROOT / "src" / "prepare.py"), *small, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def scans(tmp_path):
    """A folder of four small scans; the lesion mask of the last one lacks slices."""
    root = tmp_path / "scans"
    z, y, x = np.ogrid[:16, :28, :32]
    body = ((y - 14) / 11) ** 2 + ((x - 16) / 14) ** 2 < 1
    lung = (((z - 8) / 6.5) ** 2 + ((y - 14) / 7) ** 2 + ((x - 10) / 5) ** 2 < 1).astype(np.uint8)
    lesion = lung * (y > 15)
    for seed, name in enumerate("abcd"):
        noise = np.random.default_rng(seed).normal(0, 30, lung.shape)
        hu = (np.where(lung, np.where(lesion, -400, -850), np.where(body, 40, -1000)) + noise).clip(-1024, 3071)
        lesions = lesion[:-1] if name == "d" else lesion
        for kind, array in (("images", hu.astype(np.int16)), ("lungs", lung), ("lesions", lesions)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((9.0, 9.0, 8.0))
            (root / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(root / kind / f"{name}.nii.gz"))
    return root


def test_refused_cases_exit_2_and_the_others_are_prepared(scans, tmp_path):
    done = run(f"data.root={scans}", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert "d.nii.gz" in done.stderr
    assert "3 cases, 1 refused" in done.stdout
    assert (next(tmp_path.glob("data/prepared/folder-*")) / "failures.csv").read_text().count("\n") == 2
    done = run(f"data.root={scans}", "data.allow_refused=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train 1 (1 patients), validation 1 (1 patients), test 1 (1 patients)" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "data"}  # no litter


def test_an_option_of_another_data_set_is_named(scans, tmp_path):
    done = run(f"data.root={scans}", "+data.source.count=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.source.count: Folder has no such argument -> one of root, ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_check_only_reports_and_writes_nothing(scans, tmp_path):
    done = run(f"data.root={scans}", "check_only=true", cwd=tmp_path)
    assert done.returncode == 2 and "d REFUSED" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"scans"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: data.root: has no value -> give the folder of the data set: data.root=..."),
        (["data.root=nowhere"], "error: data.root=nowhere: there is no such folder -> correct the path"),
        (["data.prepared=nowhere"], "error: nowhere: is not a prepared data set -> make one with src/prepare.py"),
        (["data.rot=x"], "did you mean data.root?"),
        (["data=fodler"], "did you mean folder?"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, message):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_table_prints_strange_names_as_they_are(capsys):
    native = {"shape_zyx": [4, 5, 6], "spacing_zyx": [5.0, 0.7031, 0.7031]}
    info = {
        "id": "c1", "patient": "[bold]p[/x]", "site": "", "grid": {"native": native},
        "notes": ["padding [red] clipped"], "volume_ml": {"lung": 4000.0, "lesion": 2.25},
    }  # fmt: skip
    refused = [("c2", BadInput("case c2", "is [/] broken", "mend it"))]
    show(Outcome([info], refused), Console(width=120))
    out = capsys.readouterr().out
    assert "[bold]p[/x]" in out and "padding [red] clipped" in out and "c2 REFUSED: is [/] broken -> mend it" in out
    assert "4002" in out and "2.2" in out and "5 0.703 0.703" in out and "1 cases, 1 refused" in out
