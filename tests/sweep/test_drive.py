"""The driver with real child processes that only pretend to train."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from covidseg.runs.folder import RunFolder
from covidseg.sweep.driver import settle
from covidseg.sweep.pool import LocalPool
from covidseg.sweep.rows import State
from covidseg.system.errors import BadInput, Interrupted


def states(rows):
    return [row.state for row in rows]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_each_device_holds_one_run_and_all_get_done(bench):
    rows = [bench.row(f"r{k}", pause=0.2 if k < 2 else 0.02) for k in range(9)]
    shown = bench.run(rows, devices=3)
    assert states(rows) == [State.DONE] * 9
    assert bench.overlaps() == 0
    assert "Dice lesion 0.500 (n=4)" in shown


def test_runs_of_one_two_and_three_devices_mix(bench):
    rows = [bench.row(f"r{k}", devices=1 + k % 3) for k in range(9)]
    bench.run(rows, devices=3)
    assert states(rows) == [State.DONE] * 9
    assert bench.overlaps() == 0


@pytest.mark.parametrize(
    ("mode", "state", "reason"),
    [
        ("raises", State.FAILED, "case7: lesion outside the scan"),
        ("crashes", State.FAILED, "RuntimeError: boom"),
        ("exits early", State.INTERRUPTED, "without a result"),
        ("is killed", State.INTERRUPTED, "SIGKILL"),
    ],
)
def test_a_row_that_ends_badly_stops_no_other(bench, mode, state, reason):
    rows = [bench.row("a"), bench.row("bad", mode=mode), bench.row("c"), bench.row("d")]
    bench.run(rows, devices=2)
    assert states(rows) == [State.DONE, state, State.DONE, State.DONE]
    assert reason in rows[1].reason


def test_a_folder_of_another_configuration_is_free_while_it_holds_no_work(bench, monkeypatch):
    row = bench.row("a")
    row.folder.path.mkdir(parents=True)
    row.folder.write_status("failed", reason="a wrong option")
    monkeypatch.setattr(RunFolder, "config_hash", "another")
    row.judge()
    assert row.state is State.WAITING
    row.folder.checkpoints.mkdir()
    (row.folder.checkpoints / "last.ckpt").touch()
    row.judge()
    assert row.state is State.FAILED and "another configuration" in row.reason


def test_only_what_is_missing_runs_again(bench):
    def plan(mode):
        return [
            bench.row("a"),
            bench.row("killed", mode=mode),
            bench.row("raised", mode=mode.replace("is killed", "raises")),
        ]

    bench.run(plan("is killed"))
    again = plan("ok")
    bench.run(again)
    assert bench.started()[3:] == ["killed"]
    assert states(again) == [State.DONE, State.DONE, State.FAILED]
    assert "case7: lesion outside the scan" in again[2].reason
    bench.run(plan("ok"), retry_failed=True)
    assert bench.started()[4:] == ["raised"]
    bench.run(plan("ok"))
    assert len(bench.started()) == 5


def test_a_crash_before_the_run_could_say_so_is_remembered(bench):
    bench.run([bench.row("a", mode="crashes")])
    again = bench.row("a")
    again.judge()
    assert again.state is State.FAILED and again.reason == "RuntimeError: boom"


@pytest.mark.parametrize(
    ("before", "status", "said", "state", "reason"),
    [
        (None, 143, None, State.INTERRUPTED, "resumes"),
        (None, 137, None, State.INTERRUPTED, "SIGKILL"),
        (None, 1, {"state": "failed", "reason": "now"}, State.FAILED, "now"),
        ({"state": "failed", "reason": "long ago"}, 1, None, State.FAILED, "the last line"),
        ({"state": "interrupted"}, 0, None, State.INTERRUPTED, "ended without a result"),
        ({"state": "failed", "reason": "long ago"}, None, None, State.INTERRUPTED, "left the queue"),
    ],
)
def test_an_end_is_judged_by_what_this_attempt_left(bench, before, status, said, state, reason):
    row = bench.row("a")
    row.folder.path.mkdir(parents=True)
    path = row.folder.path / "status.json"
    if before:
        path.write_text(json.dumps(before))
        os.utime(path, (1e9, 1e9))
    row.started = time.time() - 1
    if said:
        path.write_text(json.dumps(said))
    settle(row, status, "the last line")
    assert row.state is state and reason in row.reason


def test_processes_that_a_killed_run_leaves_are_ended_before_its_device_is_given_away(bench, monkeypatch):
    monkeypatch.setattr("covidseg.sweep.child._PATIENCE", 0.5)
    rows = [bench.row("a", mode="leaves a rank"), bench.row("b")]
    bench.run(rows, devices=1)
    assert not alive(int((rows[0].folder.path / "rank.pid").read_text()))
    assert states(rows) == [State.INTERRUPTED, State.DONE]


def test_a_signal_lets_the_runs_save_and_the_next_sweep_goes_on(bench):
    rows = [bench.row(f"r{k}", steps=200, pause=0.05) for k in range(3)]
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with pytest.raises(Interrupted) as stopped:
        bench.run(rows, devices=2)
    assert stopped.value.exit_code == 143
    assert states(rows) == [State.INTERRUPTED, State.INTERRUPTED, State.WAITING]
    assert rows[0].folder.status["step"] > 0
    again = [bench.row(f"r{k}", steps=rows[0].folder.status["step"] + 2) for k in range(3)]
    bench.run(again, devices=3)
    assert states(again) == [State.DONE] * 3


@pytest.mark.parametrize("pair", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_k6_two_signals_at_once_are_one_request(bench, pair):
    """What `timeout`, systemd and make send: the runs have their time to save, and are not killed."""
    rows = [bench.row("a", steps=1000, pause=1.5)]  # it takes that long to save

    def send(*_):
        for signum in pair:
            os.kill(os.getpid(), signum)
            time.sleep(0.01)

    signal.signal(signal.SIGALRM, send)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with pytest.raises(Interrupted) as stopped:
        bench.run(rows, grace=60)
    assert stopped.value.exit_code == 128 + pair[0]
    assert states(rows) == [State.INTERRUPTED] and rows[0].reason == "saved its state; resumes the next time"


def test_a_second_ctrl_c_ends_a_deaf_run_at_once(bench):
    rows = [bench.row("a", steps=1000, mode="deaf")]
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.7)
    start = time.monotonic()
    with pytest.raises(Interrupted):
        bench.run(rows, grace=60)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert time.monotonic() - start < 10


def test_a_run_deaf_to_the_signal_is_killed_after_the_grace_time(bench):
    rows = [bench.row("a", steps=1000, mode="deaf")]
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    start = time.monotonic()
    with pytest.raises(Interrupted) as stopped:
        bench.run(rows, grace=0.5)
    assert stopped.value.exit_code == 130
    assert time.monotonic() - start < 10
    assert states(rows) == [State.INTERRUPTED]


def test_a_run_that_another_sweep_makes_is_waited_for_and_not_made_twice(bench):
    elsewhere = LocalPool(["9"], True, "other")
    elsewhere.start(bench.row("a", steps=10, pause=0.1))
    while not bench.events.exists():
        time.sleep(0.05)
    mine = [bench.row("a", steps=10), bench.row("b")]
    shown = bench.run(mine, devices=2)
    assert "table2/a/lesion/seed0: done" in shown
    assert states(mine) == [State.DONE, State.DONE]
    assert bench.started().count("a") == 1


def test_children_carry_no_rank_of_the_process_that_started_the_sweep(bench, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = [bench.row("a")]
    bench.run(rows)
    assert (rows[0].folder.path / "ranks.json").read_text() == '{"LOCAL_RANK": null, "WORLD_SIZE": null}'


def test_a_run_wider_than_the_pool_is_refused_before_anything_starts(bench):
    pool = LocalPool(["0", "1"], True, "table2")
    with pytest.raises(BadInput, match=r"trainer.devices=3, the pool has 2"):
        pool.fit(bench.row("a", devices=3))
    everything = bench.row("b", devices=-1)
    pool.fit(everything)
    assert everything.devices == 2
