import hashlib
import io
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint, to_resume
from covidseg.system.errors import BadInput, CovidSegError


def save(path, value=1.0, size=100):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.full((size,), value)}, "global_step": 7}, path)


def weight(path):
    return float(load_checkpoint(path)["state_dict"]["w"][0])


def test_round_trip_and_plain_torch_reads_it(tmp_path):
    save(tmp_path / "last.ckpt", 2.0)
    assert weight(tmp_path / "last.ckpt") == 2.0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_the_generation_before_is_kept(tmp_path):
    for value in (1.0, 2.0, 3.0):
        save(tmp_path / "last.ckpt", value)
    assert (weight(tmp_path / "last.ckpt"), weight(tmp_path / "previous.ckpt")) == (3.0, 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert to_resume(tmp_path)[0].name == "last.ckpt" and to_resume(tmp_path)[2] == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, value):
    save(tmp_path / "last.ckpt")
    with pytest.raises(CovidSegError, match="w holds NaN or infinity"):
        save(tmp_path / "last.ckpt", value)
    assert weight(tmp_path / "last.ckpt") == 1.0
    content = io.BytesIO()
    torch.save({"state_dict": {"w": torch.tensor(value)}}, content)
    archive = content.getvalue()
    (tmp_path / "bad.ckpt").write_bytes(archive + b"covidseg-sha256:" + hashlib.sha256(archive).digest())
    with pytest.raises(BadInput, match="NaN or infinity"):
        load_checkpoint(tmp_path / "bad.ckpt")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_checkpoint_gives_way_to_the_older_one(tmp_path, data):
    save(tmp_path / "last.ckpt", 1.0)
    save(tmp_path / "last.ckpt", 2.0)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    path, content, passed_over = to_resume(tmp_path)
    assert path.name == "previous.ckpt" and float(content["state_dict"]["w"][0]) == 1.0
    assert "last.ckpt: is truncated" in passed_over


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_never_trains_on(tmp_path, data):
    save(tmp_path / "last.ckpt", 1.0)
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(BadInput):
        to_resume(tmp_path)


def test_nothing_to_resume_from_is_not_an_error(tmp_path):
    assert to_resume(tmp_path / "absent") is None
    with pytest.raises(BadInput, match=r"last\.ckpt: is not there"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    content = io.BytesIO()
    torch.save({"state_dict": {}, "hparams": Canary()}, content)
    archive = content.getvalue()
    (tmp_path / "evil.ckpt").write_bytes(archive + b"covidseg-sha256:" + hashlib.sha256(archive).digest())
    with pytest.raises(Exception, match=r"something other than weights"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "canary").exists()


def _write_for_ever(path):
    for value in itertools.count(1):
        save(path, float(value), size=500_000)


def test_kill_9_while_writing_leaves_a_whole_checkpoint(tmp_path):
    """Killed in the middle of a write, which the size of the temporary file tells."""
    save(tmp_path / "last.ckpt", 0.5)
    for _ in range(5):
        writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path / "last.ckpt",))
        writer.start()
        deadline = time.monotonic() + 30
        while not _half_written(tmp_path) and time.monotonic() < deadline:
            pass
        writer.kill()
        writer.join()
        assert to_resume(tmp_path)[0].name == "last.ckpt"
        assert not list(tmp_path.glob(".tmp-*"))


def _half_written(folder):
    with suppress(FileNotFoundError):
        return any(0 < part.stat().st_size < 1_900_000 for part in folder.glob(".tmp-*"))


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_old_checkpoint():
    code = """
import sys, torch
from pathlib import Path
from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint
from covidseg.system.errors import EnvironmentFault
path = Path(sys.argv[1]) / "last.ckpt"
save = lambda n: AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(n)}}, path)
save(10_000)
try:
    save(400_000)
except EnvironmentFault as fault:
    assert "No space left" in str(fault), fault
    assert len(load_checkpoint(path)["state_dict"]["w"]) == 10_000
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    sys.exit(42)
"""
    script = f'd=$(mktemp -d) && mount -t tmpfs -o size=600k tmpfs "$d" && exec {sys.executable} -c "$CODE" "$d"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env={**os.environ, "CODE": code}, capture_output=True, text=True
    )
    if done.returncode in (1, 32) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no private mount here: {done.stderr.strip()}")
    assert done.returncode == 42, done.stderr


def test_the_file_is_an_ordinary_archive_with_a_trailer(tmp_path):
    save(tmp_path / "last.ckpt")
    content = (tmp_path / "last.ckpt").read_bytes()
    assert content[-48:-32] == b"covidseg-sha256:"
    assert zipfile.ZipFile(io.BytesIO(content[:-48])).testzip() is None
