"""K2: wandb's service stopped or killed at any moment, a server that drips: training and exit go on, in time."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from covidseg import tracking
from covidseg.tracking.service import NoAnswer, within

TIMEOUT_S = 4
SLACK_S = 3  # for a loaded machine
SCRIPT = """
import json, os, signal, sys, time
from omegaconf import OmegaConf
import wandb
from covidseg import tracking
from covidseg.tracking.service import _services

cfg, run_dir, name, moment = sys.argv[1:]
delays = {}

def measured(what, call):
    begin = time.monotonic()
    call()
    delays[what] = max(delays.get(what, 0), time.monotonic() - begin)

def fault(now):
    if moment == now:
        (service,) = _services()
        os.kill(service, getattr(signal, name))

loggers = tracking.make_loggers(OmegaConf.load(cfg), run_dir)
measured("start", loggers[0].start)
for step in range(400):
    if step == 10:
        fault("run")
    measured("log", lambda: [logger.log_metrics({f"loss{i}": 0.5 for i in range(100)}, step) for logger in loggers])
fault("finish")
measured("finish", lambda: tracking.finish(loggers, [], {}, "finished"))
fault("teardown")
print(json.dumps([delays, time.monotonic()]), file=sys.stderr)
"""


def run_script(cfg, run_dir, name="SIGKILL", moment="never", **environment):
    """The delay of each call and of the exit, and the finished process."""
    run_dir.mkdir(parents=True)
    OmegaConf.save(cfg, run_dir.parent / "cfg.yaml")
    command = [sys.executable, "-c", SCRIPT, str(run_dir.parent / "cfg.yaml"), str(run_dir), name, moment]
    environment = os.environ | environment | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    left_at = time.monotonic()  # one clock for all processes of a machine
    assert done.returncode == 0, done.stderr
    delays, ended_at = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("[{")))
    return delays | {"exit": left_at - ended_at}, done


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "table2" / "fv" / "lesion" / "seed0"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["run", "finish", "teardown"])
@pytest.mark.parametrize("name", ["SIGSTOP", "SIGKILL"])
def test_k2_service_stopped_or_killed(cfg, run_dir, name, moment):
    cfg.logger.timeout_s = TIMEOUT_S
    delays, done = run_script(cfg, run_dir, name, moment)
    assert {what: seconds for what, seconds in delays.items() if seconds > TIMEOUT_S + SLACK_S} == {}
    assert "wandb sync runs/table2/fv/lesion/seed0/wandb" in done.stdout
    assert done.stderr.count("Weights & Biases: tracking stopped") == (moment != "teardown")
    assert "Traceback" not in done.stderr
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 401


@pytest.fixture
def dripping_server():
    """Sends one byte of a header now and then, so that no timeout between two bytes ever passes."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip(connection):
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.2):
                connection.sendall(b"a")
        except OSError:
            pass
        connection.close()

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    over.set()
    listener.close()


@pytest.mark.slow
def test_k2_server_that_drips(cfg, run_dir, dripping_server, offline_runs):
    cfg.logger.mode, cfg.logger.timeout_s = "auto", TIMEOUT_S
    delays, done = run_script(cfg, run_dir, WANDB_BASE_URL=dripping_server, WANDB_API_KEY="k" * 40)
    assert {what: seconds for what, seconds in delays.items() if seconds > TIMEOUT_S + SLACK_S} == {}
    assert "tracking offline" in done.stderr
    (run,) = offline_runs(run_dir)
    assert len(run["history"]) == 400 and run["exit"] == 0


def test_k2_call_without_an_answer_stops_the_tracking(cfg, run_dir, monkeypatch):
    """The quick part: a call that hangs, for whatever reason, costs `timeout_s` once."""
    cfg.logger.timeout_s = TIMEOUT_S
    tracker = tracking.make_loggers(cfg, run_dir)[0]
    hung = threading.Event()
    monkeypatch.setattr(tracker.start(), "log", lambda *_, **__: hung.wait())
    tracker.timeout_s = 0.3
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(20):
            tracker.log_metrics({"loss": 0.5}, step)
    assert time.monotonic() - begin < 2
    assert [str(warning.message) for warning in told if "tracking stopped" in str(warning.message)] == [
        "Weights & Biases: tracking stopped (NoAnswer: no answer in 0.3 s); the run goes on without it"
    ]
    hung.set()
    tracker.close(0)


def test_within_returns_raises_or_leaves_the_call_behind():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])
    with pytest.raises(NoAnswer, match=r"0\.1 s"):
        within(0.1, threading.Event().wait)
