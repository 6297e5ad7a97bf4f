"""Stands for train.py where only the scheduling is tested: `fake_run.py folder=... steps=... mode=...`.

Keeps the contract of a run folder (status.json, lock, metrics.json last, 143 after SIGTERM), and notes when it held
which devices, so that a test can look for two runs on one device.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

options = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder, steps, mode = Path(options["folder"]), int(options.get("steps", 2)), options.get("mode", "ok")
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / ".lock", "a")  # noqa: SIM115  (held until the process ends)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
stop = []
signal.signal(signal.SIGTERM, lambda signum, frame: stop.append(signum))


def status(state, **values):
    temporary = folder / f".tmp-{os.getpid()}-status"
    temporary.write_text(json.dumps({"state": state, "max_steps": steps, "pid": os.getpid(), **values}))
    temporary.rename(folder / "status.json")


def note(event):
    with open(options["events"], "a") as stream:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        stream.write(json.dumps([time.monotonic(), event, str(folder), devices]) + "\n")


start = json.loads((folder / "status.json").read_text()).get("step", 0) if (folder / "status.json").exists() else 0
note("start")
for step in range(start, steps):
    status("running", step=step, patches_per_second=10.0)
    time.sleep(float(options.get("pause", 0.05)))
    if stop and mode != "deaf":
        status("interrupted", step=step)
        note("end")
        sys.exit(143)
    if mode == "raises":
        print("first line\nerror: case7: lesion outside the scan -> look at it", file=sys.stderr)
        status("failed", step=step, reason="case7: lesion outside the scan -> look at it")
        note("end")
        sys.exit(2)
    if mode == "crashes":
        print("Traceback\nRuntimeError: boom", file=sys.stderr)
        note("end")
        sys.exit(1)
    if mode == "exits early":
        note("end")
        sys.exit(0)
    if mode == "is killed":
        note("end")
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "leaves a rank":
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        rank = subprocess.Popen([sys.executable, "-c", deaf])
        time.sleep(0.5)
        (folder / "rank.pid").write_text(str(rank.pid))
        note("end")
        os.kill(os.getpid(), signal.SIGKILL)
status("running", step=steps)
(folder / "ranks.json").write_text(json.dumps({key: os.environ.get(key) for key in ("LOCAL_RANK", "WORLD_SIZE")}))
note("end")
(folder / "metrics.json").write_text(json.dumps({"sets": {"test": {"lesion": {"n": 4, "dice": {"mean": 0.5}}}}}))
status("finished", step=steps)
