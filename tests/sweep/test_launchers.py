"""The launchers through Hydra, in a small application of the same shape as train.py that only writes its run folder."""

import json
import signal
import time

import pytest


def test_any_multirun_uses_the_pool_and_again_does_only_what_is_missing(app):
    status, out, err = app.run("-m", "row=a,b,c", "seed=0")
    assert status == 1
    assert "runs: 3 to run; on 2 GPUs (4, 5)" in out
    assert err.strip().startswith("error: toy: 1 of 3 runs are unfinished (1 failed)")
    assert "this row cannot be trained" in out
    first = app.statuses()
    assert {first[row]["state"] for row in "ac"} == {"finished"}
    assert {first[row]["devices"] for row in "ac"} <= {"4", "5"}
    status, out, _ = app.run("-m", "row=a,b,c", "seed=0")
    assert status == 1 and "3 runs: 2 done, 1 failed; on" in out
    assert app.statuses() == first
    status, out, _ = app.run("-m", "row=a,c", "seed=0")
    assert status == 0 and "all 2 runs are done" in out


def test_done_means_scored_unless_no_score_was_asked_for(app):
    status, out, err = app.run("-m", "row=a", "trainer.mode=scores nothing")
    assert status == 1 and "1 of 1 runs are unfinished (1 failed)" in err
    assert "nothing was scored" in out and "fold=all" in out
    status, out, err = app.run("-m", "row=a", "trainer.mode=scores nothing", "fold=all")
    assert status == 0 and "all 1 runs are done, 1 trained, not scored" in out, err
    ledgers = [json.loads(path.read_text()) for path in (app.folder / "runs" / ".sweeps").glob("*.json")]
    states = {row["name"].split("/")[-1]: (row["state"], row["reason"]) for ledger in ledgers for row in ledger["rows"]}
    assert states["seed0-foldall"] == ("done", "trained, not scored")
    assert states["seed0"][0] == "failed" and "cross-validate" in states["seed0"][1]


def test_rows_that_do_not_differ_in_their_folder_are_refused(app):
    status, out, err = app.run("-m", "row=a", "training.max_steps=2,3")
    assert status == 2 and not list(app.folder.glob("runs/toy"))
    assert "training.max_steps=2 and training.max_steps=3" in err and out == ""
    assert "'row=mine-${training.max_steps}'" in err


def test_an_empty_glob_is_an_error(app):
    status, _, err = app.run("-m", "row=glob(z*)")
    assert status == 2 and "sweep: has no runs" in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps=abc,8", "training.max_steps=abc: is no whole number"),
        ("training.patch_size_zyx=16", "training.patch_size_zyx=16: is no list"),
        ("trainer.num_nodes=x", "trainer.num_nodes=x: is no whole number"),
        ("hydra.launcher.retries=1", "hydra.launcher.retries: this launcher has no such option -> launcher=pool:"),
    ],
)
def test_values_that_no_sweep_can_use_are_one_line(app, override, message):
    status, _, err = app.run("-m", "row=a", override)
    assert status == 2 and err.startswith(f"error: {message}") and len(err.strip().splitlines()) == 1


def test_a_changed_grid_gets_advice_that_helps(app):
    assert app.run("-m", "row=a", "seed=0")[0] == 0
    status, _, err = app.run("-m", "row=a", "seed=0", "training.max_steps=3")
    assert status == 1 and "another name= or row=" in err and "retry_failed" not in err


def test_devices_by_name_are_refused(app):
    status, _, err = app.run("-m", "row=a,c", "trainer.devices=[0,1]")
    assert status == 2 and "trainer.devices" in err


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_ends_takes_its_runs_with_it_and_the_next_one_goes_on(app, signum):
    driver = app.start("-m", "row=a,c", "training.max_steps=80")
    deadline = time.monotonic() + 40
    while sum(said.get("step", 0) > 0 for said in app.statuses().values()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signum)
    _, err = driver.communicate(timeout=30)
    assert driver.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    while any(said["state"] == "running" for said in app.statuses().values()) and time.monotonic() < deadline:
        time.sleep(0.05)  # a killed driver cannot wait for its runs, so the test has to
    assert [said["state"] for said in app.statuses().values()] == ["interrupted"] * 2
    assert (signum == signal.SIGKILL) or err.startswith("error: sweep: stopped by")
    status, out, err = app.run("-m", "row=a,c", "training.max_steps=80", "trainer.pause=0")
    assert status == 0, err
    assert "2 to run (2 of them resumed)" in out


def test_the_same_sweep_twice_at_once_is_refused(app):
    driver = app.start("-m", "row=a,c", "training.max_steps=80")
    while len(app.statuses()) < 2:
        time.sleep(0.05)
    status, _, err = app.run("-m", "row=a,c", "training.max_steps=80")
    driver.terminate()
    driver.communicate(timeout=30)
    assert status == 2 and "this very sweep is running already" in err


def test_two_overlapping_sweeps_share_their_common_run(app):
    first = app.start("-m", "row=a", "seed=0,1", "training.max_steps=25")
    while not app.statuses():
        time.sleep(0.05)
    second = app.start("-m", "row=a", "seed=1,2", "training.max_steps=25")
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
    assert len(list(app.folder.glob("runs/toy/a/lesion/seed?/metrics.json"))) == 3
