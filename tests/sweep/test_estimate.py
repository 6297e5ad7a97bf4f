"""Time and disk of a sweep, from run folders written by hand."""

import json
import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from covidseg import build_network
from covidseg.runs.timing import PARTS
from covidseg.sweep import scoring as scoring_module
from covidseg.sweep.estimate import (
    Rate,
    Size,
    check_disk,
    expected_time,
    is_long,
    measured_runs,
    network_sizes,
    price,
    quick_rate,
)
from covidseg.sweep.schedule import best_order, ideal_makespan, makespan
from covidseg.sweep.scoring import Scoring
from covidseg.system.errors import EnvironmentFault

FV = {"_target_": "covidseg.nets.unet3d.UNet3D", "width": 8}


def measured_run(bench, name, model, rate, device="cpu", processes=1, seconds=None):
    row = bench.row(name)
    row.folder.path.mkdir(parents=True)
    config = {"model": model, "training": {"patch_size_zyx": [8, 8, 8]}, "trainer": {"devices": processes}}
    (row.folder.path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    status = {"state": "finished", "patches_per_second": rate, **({"seconds": seconds} if seconds else {})}
    (row.folder.path / "status.json").write_text(json.dumps(status))
    (row.folder.path / "metrics.json").write_text(json.dumps({"sets": {"test": {"lesion": {"n": 1}}}}))
    attempt = {"device": device, "processes": processes}
    (row.folder.path / "manifest.json").write_text(json.dumps({"attempts": [attempt]}))


def rows_of(bench, *models, steps=100):
    rows = [bench.row(f"new{k}", steps=steps) for k in range(len(models))]
    for row, model in zip(rows, models, strict=True):
        row.model = model
    return rows


def test_the_time_comes_from_measured_steps_and_the_pool(bench):
    measured_run(bench, "old", FV, rate=4.0, processes=2)
    measured_run(bench, "gpu", FV, rate=400.0, device="H100")
    measured = measured_runs(bench.folder / "runs", on_gpu=False)
    rows = rows_of(bench, FV, FV, FV)
    priced = price(rows, [None] * 3, measured)
    assert priced == (3, 0, 0)
    # 100 steps x 2 patches x 2/4 s = 100 s a run; three runs on two slots take two rounds
    about = "0% of it starting, without evaluation: no case is prepared; measured steps of 3 of 3 runs"
    assert expected_time(rows, priced, 2) == f"expected time: 3 min ({about})"
    assert makespan(rows, 2) == pytest.approx(200)


def test_an_unmeasured_network_is_scaled_by_its_multiply_adds(bench):
    measured_run(bench, "old", FV, rate=2.0)
    other = {**FV, "width": 16}
    rows = rows_of(bench, FV, other)
    sizes = [Size(1000, 10**9), Size(4000, 3 * 10**9)]
    priced = price(rows, sizes, measured_runs(bench.folder / "runs", on_gpu=False))
    assert priced == (1, 1, 0)
    assert [row.cost for row in rows] == pytest.approx([100.0, 300.0])
    assert "measured steps of 1 of 2 runs, 1 scaled" in expected_time(rows, priced, 1)


def test_what_is_no_training_is_measured_and_scaled_too(bench):
    """A run of 100 s of steps that took 5 s to start and 20 s to score: another network of three times the work."""
    seconds = {**dict.fromkeys(PARTS, 0.0), "starting": 5.0, "step": 100.0, "validation": 8.0, "evaluating": 12.0}
    measured_run(bench, "old", FV, rate=2.0, seconds=seconds)
    rows = rows_of(bench, FV, {**FV, "width": 16})
    sizes = [Size(1000, 10**9), Size(4000, 3 * 10**9)]
    priced = price(rows, sizes, measured_runs(bench.folder / "runs", on_gpu=False))
    assert priced == (1, 1, 2)
    assert [row.cost for row in rows] == pytest.approx([100 + 5 + 20, 300 + 5 + 60])
    line = expected_time(rows, priced, 1)
    assert line.startswith("expected time: 8 min (18% of it starting and evaluation; measured steps")


def test_the_windows_of_prepared_cases_say_what_scoring_takes(bench, prepared):
    """Two validations and a test, counted here from the shapes of the cases and the windows."""
    from covidseg.data.store import PreparedDataset

    dataset = PreparedDataset.open(prepared)
    scoring = Scoring(prepared.parent, dataset.name, None, False, (32, 32, 32), 0.5, validations=2)

    def windows(side):
        shapes = [dataset.cases[case].grid.shape_zyx for case in getattr(dataset.split(), side)]
        return sum(int(np.prod([max(-(-(n - 32) // 16), 0) + 1 for n in shape])) for shape in shapes)

    assert scoring.windows() == 2 * windows("validation") + windows("test") + windows("external") > 0
    rows = rows_of(bench, FV)
    rows[0].scoring = scoring
    assert price(rows, [Size(1, 10)], {}, Rate(1e-3, 4.0)) == (0, 1, 1)
    assert rows[0].around == pytest.approx(4.0 + scoring.windows() * 10 * 1e-3 / 3)
    assert replace(scoring, name="other").windows() is None


@pytest.mark.parametrize(("on_validation", "windows"), [(False, 2 * 1 + 3), (True, 2 * 1 + 1)])
def test_a_run_that_is_scored_on_validation_cases_scores_no_others(monkeypatch, on_validation, windows):
    """Two validations of one case of one window; three held-out cases of one window each."""
    one = (32, 32, 32)
    monkeypatch.setattr(scoring_module, "_shapes", lambda *asked: ([one], [one] * 3))
    scoring = Scoring(Path("data"), "set", None, True, one, 0.5, validations=2, on_validation=on_validation)
    assert scoring.windows() == windows


def test_nothing_measured_is_said(bench):
    rows = rows_of(bench, FV)
    assert "unknown" in expected_time(rows, price(rows, [Size(1000, 10**9)], {}), 2)


def test_the_longest_networks_start_first(bench):
    rows = rows_of(bench, {"k": 0}, {"k": 1}, {"k": 2})
    price(rows, [Size(1, 5), Size(1, 9), Size(1, 7)], {})
    assert [row.model["k"] for row in best_order(rows, 1)] == [1, 2, 0]


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(bench, monkeypatch):
    rows = rows_of(bench, FV, FV)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * 2**30))
    sizes = [Size(34_000_000, 1)] * 2  # 34 M x 12 bytes x 4 checkpoints = 1.5 GiB each
    with pytest.raises(EnvironmentFault, match=r"needs about 3\.1 GB, 2\.0 GB are free"):
        check_disk(rows, sizes, bench.folder / "runs")
    assert "about 0.1 GB more" in check_disk(rows, [Size(1000, 1)] * 2, bench.folder / "runs")


@pytest.mark.slow
def test_table_ii_on_six_devices_is_near_the_ideal(bench):
    """The real networks' multiply-adds, ten rows of two tasks on six GPUs."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from covidseg.config.paths import CONF, EXPERIMENTS

    rows = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for file in sorted((EXPERIMENTS / "table2").glob("*.yaml")):
            cfg = compose("train", [f"experiments/table2={file.stem}"])
            for task in ("lesion", "lung"):
                row = bench.row(f"{file.stem}-{task}")
                row.model, row.patch_size_zyx = OmegaConf.to_container(cfg.model, resolve=True), [64, 128, 128]
                rows.append(row)
    sizes = network_sizes(rows)
    assert len(rows) == 20 and all(sizes)
    price(rows, sizes, {})
    assert makespan(best_order(rows, 6), 6) <= 1.1 * ideal_makespan(rows, 6)


def test_a_new_machine_is_measured_for_some_seconds(bench):
    """The rate of ten seconds, against steps of the very network and patch timed here: within a factor of four."""
    rows = rows_of(bench, FV, {**FV, "width": 2})
    for row in rows:
        row.patch_size_zyx = [16, 32, 32]
    sizes = network_sizes(rows)
    rate = quick_rate(rows, sizes, os.environ)
    priced = price(rows, sizes, {}, rate)
    assert priced == (0, 2, 0) and 0.5 < rate.starting < 60
    line = expected_time(rows, priced, 2)
    assert line.startswith("expected time: ") and "; 10 s on one device, 2 scaled by multiply-adds)" in line
    network = build_network("unet3d", width=8)
    image = torch.zeros(2, 1, 16, 32, 32)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        network(image).square().mean().backward()
        times.append(time.perf_counter() - began)
    assert min(times) / 4 < rate.per_multiply_add * sizes[0].multiply_adds * 2 < 4 * max(times)


def test_only_a_long_sweep_is_worth_the_seconds(bench):
    rows = rows_of(bench, FV, FV)
    assert is_long(rows, [Size(1, 10**11), None]) and not is_long(rows, [Size(1, 10**9), None])


def test_what_cannot_be_measured_stays_unknown(bench, monkeypatch):
    rows = rows_of(bench, FV)
    assert quick_rate(rows, [None], os.environ) is None
    rows[0].patch_size_zyx = [7, 7, 7]
    assert quick_rate(rows, [Size(1, 1)], os.environ) is None
    monkeypatch.setattr("covidseg.sweep.estimate._PATIENCE", 0.01)
    assert quick_rate(rows, [Size(1, 1)], os.environ) is None
