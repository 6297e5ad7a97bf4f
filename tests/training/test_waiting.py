"""Processes that wait for others: a signal ends them within seconds, a stopped peer within the stated time (K5)."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from covidseg.runs.folder import RunFolder

SCRIPT = Path(__file__).parents[1] / "faulty_train.py"
SMALL_SHM = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
FOREVER = 240  # on a loaded machine each process needs half a minute to import its libraries


@pytest.fixture
def start(train_options, tmp_path):
    """`start("1:3:stop", "training.max_steps=4", devices=2)` -> (the process, its run folder), killed at the end."""
    started = []

    def run(fault, *overrides, devices=2, environment=(), limit=None, through=()):
        options = [*train_options, f"trainer.devices={devices}", "row=r", "seed=29", *overrides]
        process = subprocess.Popen(
            [*through, sys.executable, str(SCRIPT), *options],
            env={**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1", **dict(environment)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))),
        )
        started.append(process)
        return process, RunFolder(tmp_path / "runs/t/r/lesion/seed29")

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stopped(process):
    """Pids of the process's group that are stopped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == process.pid and state == "T":
            found.append(int(stat.parent.name))
    return found


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(condition, process):
    deadline = time.monotonic() + FOREVER
    while not (value := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


def gone(process):
    """Whether nothing of the process's group is left but zombies."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == process.pid and state != "Z":
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_a_process_that_waits_for_a_stopped_one_ends_within_ten_seconds_of_sigterm(start, devices):
    process, folder = start("1:3:stop", devices=devices)
    wait_for(lambda: stopped(process), process)
    time.sleep(3)  # it waits for the gradients of the one that is stopped
    asked = time.monotonic()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, (out, err)
    assert time.monotonic() - asked < 12
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: this process: asked to end (SIGTERM) while it waited for other processes, which did not come"
        " -> the same command goes on from the last checkpoint"
    ]
    assert folder.status["state"] == "interrupted"
    wait_for_end = time.monotonic() + 10
    while not gone(process) and time.monotonic() < wait_for_end:
        time.sleep(0.1)
    assert gone(process) and not folder.is_locked()


@pytest.mark.slow
def test_a_stopped_process_ends_the_run_within_the_stated_time_with_its_cause(start):
    process, folder = start("1:3:stop", "trainer.collective_timeout_minutes=0.1")
    wait_for(lambda: stopped(process), process)
    began = time.monotonic()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 3, (out, err)
    assert time.monotonic() - began < 40
    assert "error: process 1: was stopped (SIGSTOP, or a frozen container) and did not answer" in err
    assert "Traceback" not in err and folder.status["state"] == "failed"
    assert gone(process)


@pytest.mark.slow
def test_a_process_that_goes_on_in_time_is_waited_for(start):
    """The watch ends nobody who is not asked to end."""
    process, folder = start("1:3:stop")
    (peer,) = wait_for(lambda: stopped(process), process)
    time.sleep(12)
    os.kill(peer, signal.SIGCONT)
    out, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 0, (out, err)
    assert folder.is_finished


@pytest.mark.slow
@pytest.mark.parametrize("what", ["signal", "timeout"])
def test_a_rendezvous_that_nobody_joins_ends(start, what):
    """As of a node of two whose other never starts."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "NODE_RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    options = ["trainer.num_nodes=2", "trainer.collective_timeout_minutes=" + ("30" if what == "signal" else "0.2")]
    process, _ = start("", *options, devices=1, environment=place)
    if what == "signal":
        time.sleep(40)
        asked = time.monotonic()
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, (out, err)
        assert time.monotonic() - asked < 12
    else:
        out, err = process.communicate(timeout=FOREVER)
        assert process.returncode == 3, (out, err)
        assert "did not answer within trainer.collective_timeout_minutes" in err
    assert "Traceback" not in err and err.count("error: ") == 1, err


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "NODE_RANK": "0"}
        process, _ = start("", environment=place)
        out, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 3, (out, err)
    assert "error: MASTER_PORT: is in use on this machine -> by another run? set it to a free port" in err
    assert "Traceback" not in err


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "6",
       "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1"}  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "step", "said"),
    [
        (6, {}, "trainer.devices=6: are 6 processes, and sbatch alone starts one -> srun python src/train.py"),
        (1, {"SLURM_STEP_ID": "0"}, "are 1 processes, and srun starts 6 -> srun --ntasks=1, or trainer.devices=6"),
        (2, {"SLURM_STEP_ID": "0"}, "are 2 processes, and srun starts 6 -> srun --ntasks=2, or trainer.devices=6"),
    ],
)  # fmt: skip
def test_tasks_that_are_missing_or_too_many_are_refused_before_anything_is_waited_for(start, devices, step, said):
    process, folder = start("", devices=devices, environment={**JOB, **step})
    _, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 2 and said in err and err.count("error: ") == 1, err
    assert not folder.path.exists()


def test_one_process_of_sbatch_without_srun_trains_alone(start):
    """`#SBATCH --ntasks=6` and `python src/train.py` in the script: one device, one process."""
    process, folder = start("", devices=1, environment=JOB)
    out, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 0, (out, err)
    assert folder.is_finished


@pytest.mark.slow
@pytest.mark.parametrize("files", [24, 48, 96])
def test_a_low_limit_of_open_files_is_one_line_or_no_matter(start, files):
    process, folder = start("", devices=2, limit=files)
    _, err = process.communicate(timeout=FOREVER)
    assert "Traceback" not in err, err
    if process.returncode:
        assert process.returncode == 3 and "ulimit -n" in err, err
    else:
        assert folder.is_finished


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root may mount a /dev/shm of its own"
)
def test_a_small_shared_memory_is_no_matter(start):
    """As Docker gives it, 64 MB, and smaller: patches come from threads, and processes talk by sockets."""
    process, folder = start("", devices=2, through=["unshare", "-m", "sh", "-c", SMALL_SHM, "sh"])
    out, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 0, (out, err)
    assert folder.is_finished
