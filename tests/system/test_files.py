"""The atomic writer under the faults it exists for."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from covidseg.system import files
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault, Interrupted


def test_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "deep" / "table.json"
    files.write_json(target, {"a": 1})
    files.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 2}
    assert os.listdir(target.parent) == ["table.json"]


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("kill_after", [0, 1, 2])
def test_killed_writer_leaves_the_old_file_and_its_rest_is_swept(tmp_path, kill_after):
    target = tmp_path / "a.bin"
    files.write_bytes(target, b"old" * 1000)
    code = f"""
        import os, signal
        from covidseg.system import files
        with files.atomic_path({str(target)!r}) as temporary:
            with open(temporary, "wb") as stream:
                for step in range(3):
                    if step == {kill_after}:
                        os.kill(os.getpid(), signal.SIGKILL)
                    stream.write(b"new" * 1000); stream.flush()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old" * 1000
    assert files.sweep_temporaries(tmp_path) == 1
    assert os.listdir(tmp_path) == ["a.bin"]


def test_sweep_spares_a_living_writer(tmp_path):
    with files.atomic_path(tmp_path / "a.bin") as temporary:
        assert files.sweep_temporaries(tmp_path) == 0
        assert temporary.exists()


@pytest.mark.parametrize("renamed", ["another pid namespace", "the same small pid, later"])
def test_whose_a_temporary_is_does_not_hang_on_a_pid(tmp_path, renamed):
    """K3: a container has pids of its own, and a restarted one the same again."""
    code = f"""
        import sys
        from covidseg.system import files
        with files.atomic_path({str(tmp_path / "a.bin")!r}):
            print("ready", flush=True)
            sys.stdin.read()
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ready\n"
    (temporary,) = tmp_path.iterdir()
    pid = 2**22 + 1 if renamed == "another pid namespace" else os.getpid()  # nobody's here, and somebody else's
    known = temporary.rename(tmp_path / f"{files.TEMPORARY_PREFIX}{pid}-x")
    assert files.sweep_temporaries(tmp_path) == 0 and known.exists()
    writer.kill()
    writer.wait()
    writer.stdin.close(), writer.stdout.close()
    assert files.sweep_temporaries(tmp_path) == 1 and not known.exists()


def test_without_locks_only_what_is_a_day_old_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "try_lock", lambda stream: False)
    files.write_text(tmp_path / "a.txt", "written all the same")
    for name in ("new", "old"):
        (tmp_path / f"{files.TEMPORARY_PREFIX}{name}").write_text("")
    yesterday = time.time() - 90_000
    os.utime(tmp_path / f"{files.TEMPORARY_PREFIX}old", (yesterday, yesterday))
    assert files.sweep_temporaries(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [f"{files.TEMPORARY_PREFIX}new", "a.txt"]


def test_a_file_in_the_place_of_a_folder_is_an_environment_fault(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(EnvironmentFault, match="a file stands where a folder is needed") as caught:
        files.write_text(tmp_path / "runs" / "a" / "b.txt", "x")
    assert caught.value.exit_code == 3
    assert str(tmp_path) not in str(caught.value)


def test_numbers_of_a_csv_file_come_back_as_numbers(tmp_path):
    line = {"row": "1e5", "seeds": "0 1", "n": 17, "mean": 0.25, "law": True, "paper": None}
    files.write_csv(tmp_path / "a.csv", [line, line | {"law": False}], list(line))
    first, second = files.read_csv(tmp_path / "a.csv", ("row", "seeds"))
    assert first == line and second == line | {"law": False}
    assert isinstance(first["mean"], float) and first["law"] is True


def test_csv_formulas_are_inert(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"case": "=cmd|' /C calc'!A0", "dice": -0.5}], ["case", "dice"])
    assert (tmp_path / "a.csv").read_text() == "case,dice\n'=cmd|' /C calc'!A0,-0.5\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(BadInput("a", "b", "c"), 2), (EnvironmentFault("a", "b", "c"), 3), (Interrupted("a", "b", "c", signum=2), 130)],
)
def test_errors_cross_process_borders_whole(error, status):
    make, parts = error.__reduce__()
    again = make(*parts)
    assert isinstance(again, CovidSegError)
    assert (str(again), again.exit_code) == ("a: b -> c", status)
