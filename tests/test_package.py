"""What leaves with a package: tracked configuration and code, nothing of the working clone it was built in."""

import subprocess
import sys
import tarfile
import zipfile

import pytest

from covidseg.config.paths import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source package of a clone with settings, results and stray files of its own."""
    clone, out = tmp_path_factory.mktemp("package") / "clone", tmp_path_factory.mktemp("dist")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        (clone / file).write_bytes((ROOT / file).read_bytes())  # as they stand now
    stray = ["conf/local/default.yaml", "conf/local/model/mine.yaml", "experiments/table1/results/table.csv"]
    stray += [
        "experiments/table2/results-mine/cases.csv",
        "experiments/table2/results-mine/a.yaml",
        "runs/t/config.yaml",
    ]
    stray += ["src/covidseg/secret.txt", "data/raw/scan.nii.gz", ".env", "runs/t/config.yaml"]
    for name in stray:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("canary")
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
        subprocess.run(command, cwd=clone, check=True, capture_output=True, timeout=120)
    return out


def test_the_wheel_holds_tracked_configuration_only(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if archive.read(name) == b"canary" and not name.endswith("secret.txt")]
    share = {name.removeprefix("covidseg/share/") for name in names if name.startswith("covidseg/share/")}
    tracked = subprocess.run(
        ["git", "ls-files", "conf", "experiments"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert share == {name for name in tracked.split() if name.endswith(".yaml")}
    assert {"covidseg/cli/train.py", "hydra_plugins/covidseg_search/__init__.py", "covidseg/report/paper.yaml"} <= {
        *names
    }
    assert "covidseg/data/datasets/covid19_ct_seg_16train.json" in names


def test_the_source_package_holds_the_same(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert not [
        name for name in names if name.startswith(("conf/local", "runs", "data", ".env")) or "/results/" in name
    ]
    assert {"pyproject.toml", "conf/train.yaml", "experiments/table2/fv.yaml", "src/train.py"} <= {*names}


def test_the_wheel_works_in_another_folder(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, covidseg.cli.train as t; sys.argv = ['train', 'experiments/table2=ceb', '--cfg', 'job']; t.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "experiments/table2=ceb", "--cfg", "job"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "row: ceb" in done.stdout
