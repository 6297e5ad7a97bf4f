"""This suite with a recipe: `train.py` for as many steps as the minutes hold, then its masks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import SimpleITK as sitk

from covidseg.benchmark.versus.job import Job, leave
from covidseg.config.paths import ROOT
from covidseg.inference.segmenter import load
from covidseg.system.errors import CovidSegError
from covidseg.system.files import csv_lines, read_json

TRIAL = 30  # steps by which the rate is measured


def run(job: Job) -> None:
    """Measure the rate, train, predict."""
    rate = read_json(_train(job, "trial", TRIAL) / "metrics.json")["train"]["patches_per_second"]
    steps = max(int(60 * job.minutes * rate / job.batch_size), TRIAL)
    trained = _train(job, "ours", steps)
    metrics = read_json(trained / "metrics.json")
    segmenter = load(trained)
    job.masks.mkdir(exist_ok=True)
    began = time.perf_counter()
    for case in job.test:
        mask = segmenter.predict(job.image(case))
        sitk.WriteImage(mask, str(job.masks / f"{case}.nii.gz"), useCompression=True)
    predicting = time.perf_counter() - began
    seconds = metrics["train"]["seconds"]
    leave(
        job,
        [(step * seconds / steps, loss) for step, loss in _losses(trained)],
        batch_size=job.batch_size,
        seconds=seconds,
        preparing=metrics["seconds"].get("preparing", 0.0),
        predicting=predicting,
        what=f"{list(job.spacing_zyx)} mm, patch {list(job.patch_size_zyx)}, batch {job.batch_size}, "
        f"{metrics['parameters'] / 1e6:.2f} M parameters",
    )


def _train(job: Job, name: str, steps: int) -> Path:
    """A finished run of so many steps; its folder."""
    runs = Path(job.folder) / "runs"
    fold = [] if job.fold is None else [f"fold={job.fold}"]
    _command(
        "train",
        *job.overrides,
        *fold,
        f"seed={job.seed}",
        f"training.max_steps={steps}",
        f"training.validate_every={steps}",
        "training.log_every=1",
        f"paths.runs={runs}",
        f"name={name}",
        "row=ours",
        "logger=csv",
    )
    return next(path.parent for path in runs.glob(f"{name}/ours/*/*/metrics.json"))


def _losses(run: Path) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["train/loss"])) for row in csv_lines(run / "metrics.csv") if row["train/loss"]]


def _command(name: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "src" / f"{name}.py"), *arguments], env={**os.environ})
    if done.returncode:
        raise CovidSegError("versus", f"{name}.py failed with status {done.returncode}", "its own message says why")


if __name__ == "__main__":
    run(Job.load(sys.argv[1]))
