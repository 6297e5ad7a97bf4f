import multiprocessing
import os
import signal
import threading
import time

import pytest

from covidseg.system.signals import StopRequest


def _wait(grace_seconds, installed, seconds):
    with StopRequest(grace_seconds).installed():
        installed.set()
        time.sleep(seconds / 2)  # a signal does not cut the sleep short: its handler returns
        time.sleep(seconds / 2)


@pytest.fixture
def waiting():
    """A process that ignores what it was asked for; `waiting(grace)` -> process."""
    started = []

    def start(grace_seconds, seconds=30):
        context = multiprocessing.get_context("fork")
        installed = context.Event()
        process = context.Process(target=_wait, args=(grace_seconds, installed, seconds))
        process.start()
        started.append(process)
        assert installed.wait(30)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_process_that_cannot_stop_ends_after_its_grace(waiting, signum):
    process = waiting(0.5)
    os.kill(process.pid, signum)
    process.join(20)
    assert process.exitcode == 128 + signum


def test_a_second_ctrl_c_ends_at_once(waiting):
    process = waiting(60)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130


def test_other_signals_may_come_twice(waiting):
    process = waiting(60, seconds=2)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    process.join(20)
    assert process.exitcode == 0


def test_the_first_signal_counts_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest().installed() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_stop_in_time_calls_the_grace_off():
    threads = set(threading.enumerate())
    with StopRequest(60).installed():
        os.kill(os.getpid(), signal.SIGTERM)
        started = set(threading.enumerate()) - threads
    assert {type(thread) for thread in started} == {threading.Thread, threading.Timer}  # the watch, and the alarm
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
