"""Scans follow one another through reading, segmenting and writing, three at a time at most."""

import threading
import time
from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest

from covidseg.inference.output_folder import OutputFault
from covidseg.inference.pipeline import predicted
from covidseg.system.errors import BadInput


class Steps:
    """A predictor that notes what it does, and counts the scans that it holds."""

    def __init__(self, fails=(), seconds=0.0, writing=0.0):
        self.fails, self.seconds, self.writing, self.written = dict(fails), seconds, writing, []
        self.log, self.held, self.most, self._lock = [], 0, 0, threading.Lock()

    def _step(self, kind, name, change=0):
        with self._lock:
            self.log.append((kind, name))
            self.held += change
            self.most = max(self.most, self.held)
        time.sleep(self.seconds)
        if error := self.fails.get((kind, name)):
            raise error
        return name

    def read(self, source):
        return self._step("read", source.id, +1)

    def segment(self, name, bar):
        return self._step("segment", name)

    def write(self, name):
        try:
            self._step("write", name)
            time.sleep(self.writing)
            self.written.append(name)
            return name
        finally:
            with self._lock:
                self.held -= 1


def sources(names):
    return [SimpleNamespace(id=name) for name in names]


def through(steps, names):
    return [(source.id, result) for source, result in predicted(steps, sources(names), nullcontext)]


def test_results_come_in_order_and_each_step_is_done_once():
    steps = Steps()
    assert through(steps, "abcde") == [(name, name) for name in "abcde"]
    assert sorted(steps.log) == sorted((kind, name) for kind in ("read", "segment", "write") for name in "abcde")
    assert through(Steps(), "") == []


def test_reading_segmenting_and_writing_overlap_and_three_scans_are_held():
    steps = Steps(seconds=0.1)
    began = time.monotonic()
    through(steps, "abcdef")
    assert time.monotonic() - began < 0.8 * 6 * 3 * 0.1  # one after the other they take 1.8 s
    assert steps.most <= 3
    order = steps.log
    assert order.index(("read", "b")) < order.index(("write", "a"))


@pytest.mark.parametrize("kind", ["read", "segment", "write"])
def test_a_failure_of_one_scan_is_told_in_its_place_and_stops_no_other(kind):
    error = BadInput("b", "is damaged")
    assert through(Steps({(kind, "b"): error}), "abc") == [("a", "a"), ("b", error), ("c", "c")]


def test_nothing_is_written_after_a_fault_of_the_output():
    steps = Steps({("write", "b"): OutputFault("out", "is full")})
    with closing(predicted(steps, sources("abcd"), nullcontext)) as outcomes:
        for source, result in outcomes:
            if isinstance(result, OutputFault):
                assert source.id == "b"
                break
    assert ("write", "c") not in steps.log


def test_what_is_being_written_is_finished_when_a_signal_ends_the_call():
    """It comes while the second scan is segmented and the first one written."""
    steps = Steps({("segment", "b"): KeyboardInterrupt()}, writing=0.3)
    with pytest.raises(KeyboardInterrupt):
        through(steps, "abcdef")
    assert steps.written == ["a"]
    assert ("read", "d") not in steps.log
