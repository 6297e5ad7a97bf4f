"""Sweeps on a real slurmctld and slurmd with six fake GPUs, started for these tests in a temporary folder.

They need Debian's slurm-wlm and munge and root; COVIDSEG_INSTALL_SLURM=1 lets the tests install the packages.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder
from covidseg.system.files import read_json

CLUSTER = Path(__file__).with_name("slurm_cluster.sh")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
SLURM = (
    "launcher=slurm",
    "hydra.launcher.poll_seconds=0.5",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.time=10",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if os.geteuid():
        pytest.skip("a SLURM for the tests can only be started by root")
    if not all(map(shutil.which, NEEDED)) and os.environ.get("COVIDSEG_INSTALL_SLURM") == "1":
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge"
        subprocess.run(["bash", "-c", install], capture_output=True, timeout=300)
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        pytest.skip(f"{', '.join(missing)} not installed (COVIDSEG_INSTALL_SLURM=1 installs Debian's packages)")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    ports = [str(free_port()), str(free_port())]
    started = subprocess.run(["bash", CLUSTER, "start", folder, *ports], capture_output=True, text=True, timeout=60)
    if started.returncode:
        pytest.skip(f"SLURM does not start here: {started.stderr.strip().splitlines()[-1:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run(["bash", CLUSTER, "stop", folder], capture_output=True, timeout=60)


def slurm(*command: str, timeout: float = 30, check: bool = True) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=check).stdout


def wait_for(condition, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def running(app, *rows: str) -> bool:
    return all(app.statuses().get(row, {}).get("step", 0) > 0 for row in rows)


def starts(app, row: str) -> list[int]:
    return [int(line) for line in (app.folder / f"runs/toy/{row}/lesion/seed0/starts").read_text().split()]


def test_rows_become_jobs_and_a_bad_end_stops_no_other(cluster, app):
    status, out, err = app.run("-m", "row=a,b,c,x,y", "seed=0,1", *SLURM, timeout=120)
    assert status == 1
    assert "10 runs: 10 to run; on SLURM" in out
    assert "6 of 10 runs are unfinished (2 failed, 4 interrupted)" in err
    assert "this row cannot be trained" in out
    assert {said["devices"] for row, said in app.statuses().items() if row in "ac"} <= set("012345")
    status, out, err = app.run("-m", "row=a,c", "seed=0,1", *SLURM)
    assert status == 0 and "4 runs: 4 done" in out


def test_a_job_killed_by_the_scheduler_does_not_keep_the_driver_waiting(cluster, app):
    driver = app.start("-m", "row=a,c", "training.max_steps=100", *SLURM)
    wait_for(lambda: running(app, "a", "c"))
    victim = slurm("squeue", "-h", "-o", "%i %j").splitlines()
    slurm("scancel", "--signal=KILL", "--full", next(line.split()[0] for line in victim if "/a/" in line))
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 1, (out, err)
    assert "1 of 2 runs are unfinished (1 interrupted)" in err
    assert app.statuses()["c"]["state"] == "finished"
    assert slurm("squeue", "-h") == ""


def test_sigusr1_saves_requeues_and_resumes(cluster, app):
    driver = app.start("-m", "row=a", "training.max_steps=60", *SLURM)
    wait_for(lambda: running(app, "a"))
    slurm("scancel", "--signal=USR1", slurm("squeue", "-h", "-o", "%i").strip())
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, (out, err)
    first, second = starts(app, "a")
    assert first == 0 and second > 0


def test_the_time_limit_only_interrupts(cluster, app):
    """One minute is the shortest limit, and SLURM looks at it every 30 s: the signal comes 20 to 50 s after a start."""
    arguments = [*SLURM, "hydra.launcher.time=1", "hydra.launcher.signal_seconds=10"]
    status, out, err = app.run("-m", "row=a", "training.max_steps=60", "trainer.pause=1", *arguments, timeout=300)
    assert status == 0, (out, err)
    assert len(starts(app, "a")) > 1


@pytest.mark.parametrize("extra", [["--begin=now+10"], []], ids=["queued", "running"])
def test_a_new_driver_finds_the_jobs_of_one_that_was_killed(cluster, app, extra):
    arguments = ["-m", "row=a,c", "training.max_steps=100", *SLURM, f"hydra.launcher.extra={extra}"]
    driver = app.start(*arguments)
    wait_for(lambda: len(slurm("squeue", "-h").splitlines()) == 2 and (extra or running(app, "a", "c")))
    driver.kill()
    driver.communicate()
    second = app.start(*arguments)
    wait_for(lambda: list(app.folder.glob("runs/.sweeps/toy-*.json")) and running(app, "a", "c"))
    assert len(slurm("squeue", "-h").splitlines()) == 2
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, (out, err)
    assert starts(app, "a") == [0] and starts(app, "c") == [0]


def array_jobs() -> set[str]:
    return set(slurm("squeue", "-h", "--array", "-o", "%F").split())


def test_rows_of_an_array_are_one_job_and_end_each_for_itself(cluster, app):
    arguments = ["-m", "row=a,b,c,x", *SLURM, "hydra.launcher.array=true"]
    driver = app.start(*arguments)
    wait_for(lambda: len(slurm("squeue", "-h", "--array").splitlines()) == 4)
    assert len(array_jobs()) == 1
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 1
    assert "2 of 4 runs are unfinished (1 failed, 1 interrupted)" in err, (out, err)
    assert "this row cannot be trained" in out
    assert [app.statuses()[row]["state"] for row in "ac"] == ["finished"] * 2
    assert "this row cannot be trained" in (app.folder / "runs/toy/b/lesion/seed0/output.log").read_text()


def test_a_task_of_an_array_is_requeued_and_found_by_a_later_driver(cluster, app):
    arguments = ["-m", "row=a,c", "training.max_steps=100", *SLURM, "hydra.launcher.array=true"]
    driver = app.start(*arguments)
    wait_for(lambda: running(app, "a", "c"))
    driver.kill()
    driver.communicate()
    (number,) = array_jobs()
    second = app.start(*arguments)
    wait_for(lambda: list(app.folder.glob("runs/.sweeps/toy-*.json")) and running(app, "a", "c"))
    slurm("scancel", "--signal=USR1", f"{number}_0")
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, (out, err)
    first, again = starts(app, "a")
    assert first == 0 and again > 0 and starts(app, "c") == [0]


def test_an_array_that_sbatch_refuses_fails_each_of_its_rows(cluster, app):
    options = ("hydra.launcher.array=true", "hydra.launcher.partition=nowhere")
    status, out, err = app.run("-m", "row=a,c", *SLURM, *options)
    assert status == 1
    assert out.count("invalid partition specified: nowhere") == 4 and "2 failed" in err  # at once, and at the end


def test_equal_runs_of_two_checkouts_are_two_jobs(cluster, app, other_app):
    arguments = ["-m", "row=a", "training.max_steps=100", *SLURM]
    first = app.start(*arguments)
    wait_for(lambda: slurm("squeue", "-h"))
    for driver in (other_app.start(*arguments), first):
        out, err = driver.communicate(timeout=240)
        assert driver.returncode == 0, (out, err)
    assert starts(app, "a") == starts(other_app, "a") == [0]


def test_a_stopped_driver_stops_its_jobs_and_they_resume(cluster, app):
    arguments = ["-m", "row=a,c", "training.max_steps=100", *SLURM]
    driver = app.start(*arguments)
    wait_for(lambda: running(app, "a", "c"))
    driver.terminate()
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 143, err
    assert slurm("squeue", "-h") == ""
    assert {said["state"] for said in app.statuses().values()} == {"interrupted"}
    status, out, err = app.run(*arguments)
    assert status == 0, (out, err)
    assert starts(app, "a")[1] > 0


def test_a_run_of_several_devices_is_a_job_of_several_tasks(cluster, app):
    status, out, err = app.run("-m", "row=a", "trainer.devices=3", *SLURM)
    assert status == 0, (out, err)
    folder = app.folder / "runs/toy/a/lesion/seed0"
    ranks = [folder / "rank1", folder / "rank2"]  # which may be slower than the first one, whose word ends the sweep
    wait_for(lambda: [rank.read_text() for rank in ranks if rank.exists()] == ["3", "3"])


def test_what_sbatch_refuses_is_said_once_per_row(cluster, app):
    status, out, err = app.run("-m", "row=a,c", "hydra.launcher.partition=nowhere", *SLURM)
    assert status == 1
    assert "invalid partition specified: nowhere" in out and "2 failed" in err


def test_the_real_train_py_on_two_tasks_is_warned_requeued_and_ends_as_if_alone(cluster, train_options, tmp_path):
    script = Path(__file__).parents[1] / "faulty_train.py"
    options = [*train_options, "trainer.devices=2", "training.max_steps=30", "training.validate_every=30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    alone = start(*options, "row=alone")
    assert alone.wait(200) == 0, alone.stderr.read()
    driver = start("-m", *options, "row=swept", *SLURM)
    folder = RunFolder(tmp_path / "runs/t/swept/lesion/seed0")
    wait_for(lambda: (folder.status or {}).get("step", 0) > 2, seconds=120)
    slurm("scancel", "--signal=USR1", slurm("squeue", "-h", "-o", "%i").strip())
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, out + err
    attempts = read_json(folder.path / "manifest.json")["attempts"]
    assert [attempt["processes"] for attempt in attempts] == [2, 2]
    whole = RunFolder(tmp_path / "runs/t/alone/lesion/seed0").path
    assert (folder.path / "cases.csv").read_text() == (whole / "cases.csv").read_text()
    ours, theirs = (load_checkpoint(path / "checkpoints/last.ckpt")["state_dict"] for path in (folder.path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_is_started_through_what_wraps_it(cluster, app):
    """A stand-in of `apptainer exec`: it notes what it starts, and starts it."""
    wrapper = app.folder / "wrapper.sh"
    wrapper.write_text(f'echo "$1 $2 $COVIDSEG_STAGE" >> {app.folder}/wrapped\nshift\nexec "$@"\n')
    node = app.folder / "node"
    options = (f"hydra.launcher.wrap='bash {wrapper} --nv'", f"hydra.launcher.setup=['export DISK={node}']")
    status, out, err = app.run("-m", "row=a", *SLURM, *options, "hydra.launcher.stage='${oc.env:NOTHING,$DISK/x}'")
    assert status == 0, (out, err)
    assert (app.folder / "wrapped").read_text() == f"--nv {sys.executable} {node}/x\n"


def test_a_detached_driver_submits_and_ends(cluster, app):
    arguments = ["-m", "row=a,c", "training.max_steps=60", *SLURM]
    status, out, err = app.run(*arguments, "hydra.launcher.detach=true")
    assert (status, err) == (0, ""), (out, err)
    assert "2 jobs are in the queue; `make status` shows them" in out
    assert len(slurm("squeue", "-h").splitlines()) == 2
    ask = [sys.executable, "-m", "covidseg.cli.status"]
    shown = subprocess.run(ask, cwd=app.folder, capture_output=True, text=True, timeout=60).stdout
    assert "not running: 2 " in shown and "failed" not in shown and "interrupted" not in shown, shown
    wait_for(lambda: not slurm("squeue", "-h"))
    shown = subprocess.run(ask, cwd=app.folder, capture_output=True, text=True, timeout=60).stdout
    assert "2 done" in shown, shown
    status, out, err = app.run(*arguments)
    assert status == 0 and "2 runs: 2 done" in out
    assert starts(app, "a") == starts(app, "c") == [0]


def test_a_detached_driver_says_what_the_queue_had_no_room_for(cluster, app):
    options = ("hydra.launcher.detach=true", "hydra.launcher.max_jobs=1")
    status, out, _ = app.run("-m", "row=a,c", *SLURM, *options)
    assert status == 0 and "1 jobs are in the queue, 1 wait for room in the queue" in out
    status, out, err = app.run("-m", "row=a,c", *SLURM)
    assert status == 0, (out, err)


def test_k6_two_sigterms_at_once_are_one_request(cluster, app):
    arguments = ["-m", "row=a,c", "training.max_steps=100", *SLURM]
    driver = app.start(*arguments)
    wait_for(lambda: running(app, "a", "c"))
    driver.terminate()
    time.sleep(0.05)
    driver.terminate()
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 143, err
    assert {said["state"] for said in app.statuses().values()} == {"interrupted"}  # saved, not cancelled
    assert app.run(*arguments)[0] == 0


def test_k11_a_job_that_does_not_find_its_gpu_fails_at_once(cluster, train_options, tmp_path):
    """The cluster hands out its fake GPUs; torch here finds none of them."""
    options = [option for option in train_options if not option.startswith("trainer")]
    command = [sys.executable, "-m", "covidseg.cli.train", "-m", *options, "row=gpu", *SLURM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "GPU gpu: was given to this run, and torch finds 0 of 1" in done.stdout
    assert not list(tmp_path.glob("runs/*/*/*/*/checkpoints/*.ckpt"))


@pytest.mark.parametrize(("start", "said"), [
    ("", "are 6 processes, and sbatch alone starts one -> srun python src/train.py"),
    ("srun --ntasks=3", "are 6 processes, and srun starts 3 -> srun --ntasks=6, or trainer.devices=3"),
])  # fmt: skip
def test_k5_tasks_that_nobody_starts_are_not_waited_for(cluster, train_options, tmp_path, start, said):
    run = shlex.join([sys.executable, "-m", "covidseg.cli.train", *train_options, "trainer.devices=6", "row=six"])
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\ncd {tmp_path}\n{start} {run}\n")
    began = time.monotonic()
    slurm(
        "sbatch",
        "--wait",
        "--ntasks=6",
        "--ntasks-per-node=6",
        "--output=out",
        f"--chdir={tmp_path}",
        str(script),
        timeout=200,
        check=False,
    )
    assert said in (tmp_path / "out").read_text()
    assert time.monotonic() - began < 150
