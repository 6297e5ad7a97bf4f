"""Runs as jobs of a SLURM cluster, one `sbatch` each, or one for all that ask for the same (`array`).

What became of a job is read from its run folder; the queue only says whether it is still there. So a job that the
scheduler killed, on a cluster without accounting too, is seen to be gone at the next look, and a driver that was killed
finds its jobs again by their name. A run that ends with 138 (128 + SIGUSR1: it was warned of its time limit or of
pre-emption, and saved) puts itself back into the queue.
"""

import getpass
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covidseg.data.staging import STAGE
from covidseg.sweep.arrays import JobArrays, job_name
from covidseg.sweep.child import environment, last_line, program
from covidseg.sweep.rows import Row, State
from covidseg.system.devices import GIVEN_GPUS
from covidseg.system.errors import BadInput, EnvironmentFault

_ANSWER_SECONDS = 60  # for one call of sbatch, squeue, scontrol or scancel
_LOOKS_TO_BE_SURE = 2  # a job has to be missing from the queue so often


@dataclass
class ClusterOptions:
    """The values are in conf/launcher/slurm.yaml, with what they mean."""

    partition: str | None
    account: str | None
    time: str
    cpus_per_task: int
    mem: str | None
    gres: str | None
    extra: list[str]
    setup: list[str]
    signal_seconds: int
    poll_seconds: float
    unreachable_seconds: float
    max_jobs: int
    wrap: str | None
    stage: str | None
    array: bool
    detach: bool

    def __post_init__(self) -> None:
        for name in ("array", "detach"):
            if not isinstance(value := getattr(self, name), bool):
                raise BadInput(f"hydra.launcher.{name}={value}", "is neither true nor false", "true or false")


@dataclass
class _Job:
    id: str
    row: Row
    log_start: int
    missed: int = 0


class Cluster:
    """Submits rows and says which have left the queue.

    `group`: what the runs of this sweep are tracked under; `arrays`: the folder for what belongs to job arrays.
    """

    def __init__(self, options: ClusterOptions, group: str, arrays: Path):
        self.options, self.group, self.on_gpu = options, group, bool(options.gres)
        self.detached, self.arrays = options.detach, JobArrays(arrays)
        self._jobs: dict[str, _Job] = {}
        self._held_back: list[_Job] = []  # rows of an array that is still being collected
        self._looked = -options.poll_seconds
        self._answered = time.monotonic()
        self._queue: dict[str, dict[str, str]] | None = None  # what stood in the queue before this driver came

    def __str__(self) -> str:
        return f"SLURM{f', partition {self.options.partition}' if self.options.partition else ''}"

    slots = None  # how many run at once is the cluster's affair

    def fit(self, row: Row) -> None:
        """Raises BadInput where the number of devices is left to a machine that is not known yet."""
        if row.devices == -1:
            raise BadInput("trainer.devices", "auto says nothing about a cluster's nodes", "give the number per node")

    def next(self, waiting: Sequence[Row]) -> Row | None:
        """The next to submit, while fewer than `max_jobs` are in the queue."""
        there = len(self._jobs) + len(self._held_back)
        return waiting[0] if waiting and there < self.options.max_jobs else None

    def start(self, row: Row) -> None:
        """Submit the row, or take over the job of an earlier driver. Raises EnvironmentFault when sbatch refuses.

        With `array` a new one waits for `flush`.
        """
        row.state = State.QUEUED
        if self._queue is None:
            self._queue = {self.arrays.row_of(job): job for job in _queue().values()}
        log = row.folder.path / "output.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        job = _Job("", row, log.stat().st_size if log.exists() else 0)
        if old := self._queue.get(job_name(row)):
            self._submitted(job, old["id"])
        elif self.options.array:
            self._held_back.append(job)
        else:
            self._submitted(job, self._sbatch(self._arguments(row), self.batch_script([row])))

    def flush(self) -> list[Row]:
        """Submit the rows that `start` held back, those that ask for the same as one array.

        Returns the rows of the arrays that sbatch refused, with its reason.
        """
        arrays: dict[tuple[int, int], list[_Job]] = {}
        for job in self._held_back:
            arrays.setdefault((job.row.nodes, job.row.devices), []).append(job)
        self._held_back = []
        refused = []
        for jobs in arrays.values():
            rows = [job.row for job in jobs]
            name = self.arrays.make(rows, self.group)
            arguments = [*self._arguments(rows[0], name), f"--array=0-{len(rows) - 1}"]
            try:
                number = self._sbatch(arguments, self.batch_script(rows))
            except EnvironmentFault as error:
                for row in rows:
                    row.state, row.reason = State.FAILED, str(error)
                refused += rows
                continue
            for task, job in enumerate(jobs):
                self._submitted(job, f"{number}_{task}")
        return refused

    def _submitted(self, job: _Job, number: str) -> None:
        job.id, job.row.placed_on = number, [f"job {number}"]
        self._jobs[number] = job

    def _sbatch(self, arguments: Sequence[str], script: str) -> str:
        return _call(["sbatch", *arguments], script, self.group).strip().split(";")[0]

    def ended(self) -> list[tuple[Row, int | None, str]]:
        """The rows whose jobs have left the queue. Looks at it every `poll_seconds`.

        Raises EnvironmentFault when SLURM has not answered for `unreachable_seconds`; the jobs go on by themselves.
        """
        now = time.monotonic()
        if not self._jobs or now - self._looked < self.options.poll_seconds:
            return []
        self._looked = now
        try:
            queue = _queue()
        except EnvironmentFault:
            if now - self._answered > self.options.unreachable_seconds:
                raise
            return []
        self._answered = now
        over = []
        for job in list(self._jobs.values()):
            if job.id in queue:
                job.missed = 0
                _show(job.row, queue[job.id])
                continue
            job.missed += 1
            if job.missed >= _LOOKS_TO_BE_SURE:
                del self._jobs[job.id]
                job.row.placed_on, job.row.seconds = [], time.time() - job.row.started
                said = last_line(job.row.folder.path / "output.log", job.log_start)
                over.append((job.row, _exit_status(job.id), said))
        return over

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def environment_of_one(self) -> dict[str, str]:
        """Not known before a job runs."""
        return {}

    def terminate(self) -> None:
        """Take what waits out of the queue; ask what runs to save and end."""
        if self._jobs:
            self._looked = -self.options.poll_seconds
            _cancel(["--state=PENDING", *self._jobs])
            _cancel(["--signal=TERM", *self._jobs])

    def kill(self) -> None:
        """Cancel every job."""
        if self._jobs:
            _cancel(list(self._jobs))

    def batch_script(self, rows: Sequence[Row]) -> str:
        """The job: the run under srun, one task per device, requeued when it saved because it was told to give way.

        Of several rows it is an array's, whose tasks are counted from 0 in their order.
        """
        runs = [shlex.join([*program(), *row.overrides]) for row in rows]
        # What srun starts, from SLURM 22.05 on, inherits no --cpus-per-task.
        started = [f"srun --cpus-per-task={self.options.cpus_per_task} {self._wrapped(run)}" for run in runs]
        if len(started) > 1:
            started = ["case $SLURM_ARRAY_TASK_ID in", *(f"{k}) {run};;" for k, run in enumerate(started)), "esac"]
        staged = [f'export {STAGE}="{self.options.stage}"'] if self.options.stage else []  # its variables are the job's
        lines = [
            "#!/bin/bash",
            *self.options.setup,
            *staged,
            *(
                [f"export {GIVEN_GPUS}={self.options.gres}"] if self.options.gres else []
            ),  # a task that finds none fails
            *started,
            "status=$?",
            '[ $status -eq 138 ] && scontrol requeue "$SLURM_JOB_ID"',
            "exit $status",
        ]
        return "\n".join(lines) + "\n"

    def _wrapped(self, run: str) -> str:
        return f"{self.options.wrap} {run}" if self.options.wrap else run

    def _arguments(self, row: Row, array: str | None = None) -> list[str]:
        """What sbatch is asked for, for a row, or for the array of that name which the row is the first of."""
        o = self.options
        log = self.arrays.log(array) if array else row.folder.path / "output.log"
        given: dict[str, Any] = {
            "job-name": array or job_name(row),
            "output": log.resolve(),
            "open-mode": "append",
            "nodes": row.nodes,
            "ntasks-per-node": row.devices,
            "cpus-per-task": o.cpus_per_task,
            "gres": f"{o.gres}:{row.devices}" if o.gres else None,
            "mem": o.mem,
            "time": o.time,
            "partition": o.partition,
            "account": o.account,
            "signal": f"USR1@{o.signal_seconds}",
        }
        options = [f"--{key}={value}" for key, value in given.items() if value is not None]
        return ["--parsable", "--requeue", *options, *o.extra]


def _show(row: Row, job: dict[str, str]) -> None:
    running = job["state"] in ("RUNNING", "COMPLETING")
    row.state = State.RUNNING if running else State.QUEUED
    row.placed_on = [f"job {job['id']}"] + ([job["nodes"]] if running else [])
    row.reason = "" if running else f"job {job['id']}: {job['reason']}"


def _queue() -> dict[str, dict[str, str]]:
    """This user's jobs that wait or run, by job number."""
    columns = {"id": "%i", "name": "%j", "state": "%T", "reason": "%r", "nodes": "%N"}
    shown = ["--user", getpass.getuser(), "--format", "\t".join(columns.values())]
    text = _call(["squeue", "--noheader", "--array", *shown])
    jobs = [dict(zip(columns, line.split("\t"), strict=False)) for line in text.splitlines() if line.strip()]
    return {job["id"]: job for job in jobs}


def _exit_status(number: str) -> int | None:
    """What the controller still knows of a finished job; None when it was cancelled or is forgotten."""
    try:
        text = _call(["scontrol", "--oneliner", "show", "job", number])
    except EnvironmentFault:
        return None
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    if fields.get("JobState") not in ("COMPLETED", "FAILED", "OUT_OF_MEMORY"):
        return None
    status, _, signum = fields.get("ExitCode", "0:0").partition(":")
    return -int(signum) if signum not in ("", "0") else int(status)


def _cancel(arguments: list[str]) -> None:
    try:
        _call(["scancel", *arguments])
    except EnvironmentFault as error:  # a job that ended meanwhile, or a controller that is away: the next look tells
        print(error)


def _call(command: list[str], script: str | None = None, group: str = "") -> str:
    """The output of one of SLURM's programs. Raises EnvironmentFault with what it said, or that it did not answer."""
    try:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            env=environment({"COVIDSEG_SWEEP": group} if group else {}),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise EnvironmentFault(command[0], "is not installed here", "start the sweep on a login node") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(command[0], f"no answer in {_ANSWER_SECONDS} s", "is the controller up?") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise EnvironmentFault(command[0], said, "see the options in conf/launcher/slurm.yaml")
    return done.stdout
