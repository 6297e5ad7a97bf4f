"""`python src/benchmark.py SUITE` as a user calls it, on something small; and margins that a change may not lose."""

import json
import subprocess
import sys
from importlib import import_module
from statistics import median

import pytest
from hydra import compose, initialize_config_dir

from covidseg.benchmark import CONTESTS
from covidseg.benchmark.contest import OURS, TUNED, USUAL, compete
from covidseg.config.paths import CONF, ROOT
from reading import SMALL_CONTESTS


@pytest.mark.parametrize("suite", [
    pytest.param(name, marks=pytest.mark.slow) if name == "startup" else name for name in CONTESTS
])  # fmt: skip
def test_a_suite_prints_its_tables_and_writes_them_with_their_numbers(suite, tmp_path):
    command = [sys.executable, str(ROOT / "src" / "benchmark.py"), suite, *SMALL_CONTESTS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "benchmark"
    text = (folder / f"{suite}.md").read_text()
    numbers = json.loads((folder / f"{suite}.json").read_text())
    assert f"\n### {suite}: " in text and f"\n### {suite}: " in done.stdout
    for contest in numbers["contests"]:
        kinds = {one["kind"]: one for one in contest["outcomes"]}
        assert len(kinds[OURS]["cpu"]) == 1 and kinds[OURS]["cpu"][0] > 0
        present = [one["name"] for one in contest["outcomes"] if not one["absent"] and one["kind"] in (USUAL, TUNED)]
        assert suite == "startup" or "MONAI" in " ".join(present) or suite == "step"
    assert str(tmp_path) not in text and numbers["hardware"]["cores"] >= 1


@pytest.fixture
def options(tmp_path):
    def made(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("benchmark", [f"output={tmp_path}", "suite=all", *overrides])

    return made


def ratios(contest):
    """{contender: the median of its CPU time over ours} of a contest, without what is not installed."""
    outcomes, _ = compete(contest, say=lambda line: None)
    return {one.name: median(one.ratio) for one in outcomes if not one.absent and one.kind != OURS}


@pytest.mark.parametrize(("suite", "overrides", "peer", "margin"), [
    ("loader", ["loader.shape_zyx=[48,96,96]", "loader.cases=2", "loader.patch_size_zyx=[32,64,64]"],
     "MONAI CacheDataset", 2.0),
    ("scoring", ["loader.shape_zyx=[48,96,96]", "scoring.shape_zyx=[96,192,192]"], "MONAI", 1.3),
])  # fmt: skip
def test_what_was_won_is_not_lost(options, suite, overrides, peer, margin):
    """Ratios of CPU time with room on both sides: the loader is 15 times, scoring several times less than MONAI's."""
    (contest,) = import_module(f"covidseg.benchmark.{suite}").contests(options(*overrides))
    assert ratios(contest)[peer] > margin
