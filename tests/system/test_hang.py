"""A process that was asked to end is ended where it waits for others, and nowhere else."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

# The main thread stands in a function of `waiting.py`, `writing.py`: in one call that goes on for six seconds.
PROGRAM = """
    import os, signal, sys, threading
    sys.path.insert(0, {folder!r})
    from covidseg.system import hang
    hang.WAIT_SECONDS = 2.0
    import {module} as module
    signal.signal(signal.SIGTERM, lambda signum, frame: print("heard", flush=True))
    watch = hang.HangWatch((signal.SIGTERM,), hang.leave, ({folder!r} + "/waiting.py",))
    watch.start()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    module.{call}()
    watch.stop()
    print("went on", flush=True)
"""
CODE = """
    import ctypes, threading, zlib
    def still():  # as in a collective: in C, and no signal ends it early
        c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        c.pthread_mutex_lock(lock)
        threading.Timer(6, c.pthread_mutex_unlock, (lock,)).start()
        c.pthread_mutex_lock(lock)
    def computes():  # as in a backward pass: in C, and busy
        for _ in range(3):
            zlib.compress(DATA, 9)
    import os
    DATA = os.urandom(60_000_000)
"""


@pytest.fixture
def run(tmp_path):
    """`run("waiting", "still")` -> (exit status, what it printed, seconds)."""
    for name in ("waiting", "writing"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))

    def start(module, call):
        code = textwrap.dedent(PROGRAM.format(folder=str(tmp_path), module=module, call=call))
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, time.monotonic() - began

    return start


def test_a_process_that_waits_is_ended_with_the_status_of_its_signal(run):
    status, said, seconds = run("waiting", "still")
    assert (status, said) == (143, "") and seconds < 6


def test_a_process_that_writes_is_left_alone_until_its_handler_runs(run):
    status, said, _ = run("writing", "still")
    assert (status, said.split()) == (0, ["heard", "went", "on"])


def test_a_process_that_computes_is_left_alone(run):
    status, said, _ = run("waiting", "computes")
    assert (status, "went on" in said) == (0, True)


@pytest.mark.skipif(not os.path.exists("/proc"), reason="the signals of Linux")
def test_nothing_is_ended_without_a_signal():
    from covidseg.system.hang import HangWatch

    ended = []
    watch = HangWatch((signal.SIGTERM,), ended.append, ("",))
    watch.start()
    time.sleep(0.2)
    watch.stop()
    assert ended == []
