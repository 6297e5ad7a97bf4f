"""K4: whatever the disk refuses, at whichever call, is one line with exit status 3, and nothing is lost.

A layer between the suite and the operating system fails the n-th call, for every n and errno. K14: what the same layer
showed to be untested.
"""

import builtins
import csv
import errno
import fcntl
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress

import pytest
import torch

from covidseg.evaluation.results import write_results
from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint, to_resume
from covidseg.runs.folder import RunFolder, run_dir
from covidseg.sweep.ledger import Ledger, read_ledger
from covidseg.system import files
from covidseg.system.errors import EnvironmentFault
from covidseg.system.files import TEMPORARY_PREFIX, read_json, sweep_temporaries, write_csv, write_json, write_text

ERRNOS = [errno.EFBIG, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.ENOLCK, errno.ENOSPC, errno.EROFS]


class Disk:
    """Counts the calls that can fail, and fails one of them."""

    def __init__(self, monkeypatch):
        self.calls, self.failing, self.errno = 0, None, None
        for owner, name in (
            (os, "fsync"), (os, "replace"), (tempfile, "mkstemp"), (fcntl, "flock"), (os, "mkdir"), (os, "link"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))
        for owner in (builtins, io):
            monkeypatch.setattr(owner, "open", self.opening(owner.open))

    def call(self):
        self.calls += 1
        if self.calls == self.failing:
            raise OSError(self.errno, os.strerror(self.errno), "a file")

    def counted(self, original):
        def call(*arguments, **options):
            self.call()
            return original(*arguments, **options)

        return call

    def opening(self, original):
        def call(file, mode="r", *arguments, **options):
            stream = original(file, mode, *arguments, **options)
            return Failing(stream, self) if set(mode) & set("wa") and "b" in mode else stream

        return call

    def fail(self, call, number):
        self.calls, self.failing, self.errno = 0, call, number


class Failing:
    """A stream whose `write` leaves half of what it was given and may fail."""

    def __init__(self, stream, disk):
        self.stream, self.disk = stream, disk

    def write(self, content):
        half = len(content) // 2
        self.stream.write(content[:half])
        self.disk.call()
        return half + self.stream.write(content[half:])

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        self.stream.__enter__()
        return self

    def __exit__(self, *details):
        return self.stream.__exit__(*details)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def text(folder, word):
    write_text(folder / "a.txt", word)


def number(folder, word):
    write_json(folder / "a.json", {"word": word})


def table(folder, word):
    write_csv(folder / "a.csv", [{"word": word}], ["word"])


def checkpoint(folder, word):
    weights = {"w": torch.full((3,), float(len(word)))}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "global_step": len(word)}, folder / "last.ckpt")


def results(folder, word):
    write_results(folder, [], {"word": word})


def locked_run(folder, word):
    run = RunFolder(folder)
    with run.lock():
        run.write_status("running", step=len(word))


def ledger(folder, word):
    sweep = Ledger(folder, word, [])
    with sweep.held():
        sweep.save()


def stands(folder):
    """What a reader finds; a half-written file would raise."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            content = read_json(path)
            found[path.name] = content.get("word") or content.get("step") or read_ledger(path)["sweep"]
        elif path.suffix == ".ckpt":
            found[path.name] = load_checkpoint(path)["global_step"]
        elif path.suffix in (".txt", ".csv"):
            found[path.name] = path.read_text()
    return found


@pytest.mark.parametrize("number_of_error", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("work", [text, number, table, checkpoint, results, locked_run, ledger])
def test_k4_every_call_may_fail_and_nothing_is_lost(tmp_path, disk, work, number_of_error):
    whole = tmp_path / "whole"
    whole.mkdir()
    work(whole, "old")
    old = stands(whole)
    disk.fail(None, 0)
    work(whole, "newer")
    new, calls = stands(whole), disk.calls
    assert calls >= 3
    for call in range(1, calls + 1):
        folder = tmp_path / str(call)
        folder.mkdir()
        disk.fail(None, 0)
        work(folder, "old")
        disk.fail(call, number_of_error)
        told = None
        try:
            work(folder, "newer")
        except EnvironmentFault as fault:
            told = str(fault)
        finally:
            disk.fail(None, 0)
        found = stands(folder)
        for name, content in old.items():
            assert found[name] in (content, new[name]), (call, name)
        assert told is not None or found == new, f"call {call} was passed over"
        assert told is None or (os.strerror(number_of_error) in told and " -> " in told and "\n" not in told)
        assert not list(folder.rglob(f"{TEMPORARY_PREFIX}*")) or sweep_temporaries(folder) == 0
        work(folder, "newer")
        assert {name: stands(folder)[name] for name in old} == {name: new[name] for name in old}


def test_k4_a_checkpoint_that_a_fault_left_can_be_resumed(tmp_path, disk):
    for failing in range(1, 12):
        with suppress(EnvironmentFault):
            disk.fail(failing, errno.EIO)
            checkpoint(tmp_path, "x" * failing)
        disk.fail(None, 0)
        if (tmp_path / "last.ckpt").exists():
            _, content, passed_over = to_resume(tmp_path)
            assert content["global_step"] <= failing and not passed_over


@pytest.mark.slow
def test_k4_a_training_that_the_disk_ends_says_so_in_one_line_and_goes_on(train_options, train_config, tmp_path):
    def start(limit):
        def lower():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        command = [sys.executable, "-m", "covidseg.cli.train", *train_options, "model.width=8"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, preexec_fn=lower, capture_output=True, text=True, timeout=200
        )

    stopped = start(100_000)
    assert stopped.returncode == 3, stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert "last.ckpt: cannot be written (File too large) -> " in line and "Traceback" not in stopped.stderr
    folder = RunFolder(run_dir(train_config("model.width=8")))
    assert folder.status["state"] == "failed"
    went_on = start(resource.RLIM_INFINITY)
    assert went_on.returncode == 0, went_on.stderr
    assert folder.is_finished


@pytest.mark.slow
@pytest.mark.parametrize("number_of_error", [errno.ENOLCK, errno.EIO], ids=errno.errorcode.get)
def test_k4_predict_and_prepare_end_with_status_3(in_process, make_run, write_scan, tmp_path, disk, number_of_error):
    run = make_run("lesion")
    write_scan(tmp_path / "in/one.nii.gz")
    phantom = ["data=phantom", "data.source.count=2", "data.source.shape_zyx=[34,48,48]", "data.workers=0"]
    for program, place, *options in (
        ("predict", "output", f"run={run}", "input=in"),
        ("prepare", "paths.data", *phantom),
    ):
        disk.fail(None, 0)
        assert in_process(program, *options, f"{place}={program}-whole")[0] == 0
        refused, points = 0, range(1, disk.calls + 1, max(disk.calls // 4, 1))
        for call in points:
            disk.fail(call, number_of_error)
            status, out, err = in_process(program, *options, f"{place}={program}-{call}")
            disk.fail(None, 0)
            if status:
                refused += 1
                assert status in (1, 3) and os.strerror(number_of_error) in err + out and "Traceback" not in err, err
                assert " -> " in err.strip().splitlines()[-1] or status == 1, err
            status, _, err = in_process(program, *options, f"{place}={program}-{call}")
            assert status == 0, err
        assert refused >= len(points) // 2  # memories that only save time may be lost without a word


def test_k14_file_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    happened = []
    replace, fsync = os.replace, os.fsync

    def synced(handle):
        happened.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (happened.append("rename"), replace(*paths)))
    write_text(tmp_path / "a", "content")
    assert happened == ["file", "rename", "folder"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_k14_files_have_the_rights_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        after = os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask and after == mask


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_k14_text_that_a_spreadsheet_would_run_is_quoted(tmp_path, start):
    write_csv(tmp_path / "a.csv", [{"case": f"{start}1+1"}], ["case"])
    with open(tmp_path / "a.csv", newline="") as stream:
        assert next(csv.DictReader(stream))["case"] == f"'{start}1+1".replace("\r", "\n")


def test_k14_json_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    (tmp_path / "a.json").write_text(json.dumps("x" * 98))
    assert len(read_json(tmp_path / "a.json")) == 98
    (tmp_path / "a.json").write_text(json.dumps("x" * 99))
    with pytest.raises(ValueError, match="MiB of JSON"):
        read_json(tmp_path / "a.json")
