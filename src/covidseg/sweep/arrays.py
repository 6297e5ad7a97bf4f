"""How jobs of a cluster are called, so that a later driver finds them again, and what belongs to an array of them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from covidseg.sweep.rows import Row
from covidseg.system.files import read_json, write_json
from covidseg.system.readback import mismatch


def job_name(row: Row) -> str:
    """By which a later driver finds the job again: the run, its config and where its folder lies.

    Without the place, a second checkout of the same user would take over the jobs of the first one's equal runs.
    """
    identity = f"{row.folder.path.resolve()} {row.hash}"
    return f"{row.name}@{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


class JobArrays:
    """What a later driver, and the cluster, need of job arrays: a folder for each, called as the array is.

    `rows.json` lists the `job_name` of each task's row; the link `<task>` is where SLURM writes its output: the log in
    the run's folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, rows: Sequence[Row], group: str) -> str:
        """The name of the array of these rows, whose folder is made."""
        names = [job_name(row) for row in rows]
        name = f"{group}@{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "rows.json", names)
        for task, row in enumerate(rows):
            link = folder / str(task)
            link.unlink(missing_ok=True)
            link.symlink_to((row.folder.path / "output.log").resolve())
        return name

    def log(self, name: str) -> Path:
        """What sbatch writes the output of each task of the array to."""
        return self.folder / name / "%a"

    def row_of(self, job: Mapping[str, str]) -> str:
        """The `job_name` of the row that a job in the queue makes; a job's own name where it is of no array."""
        task = job["id"].partition("_")[2]
        if not task.isdigit() or "/" in job["name"]:
            return job["name"]
        try:
            names = read_json(self.folder / job["name"] / "rows.json")
        except (OSError, ValueError):
            return job["name"]
        return names[int(task)] if not mismatch(names, [str]) and int(task) < len(names) else job["name"]
