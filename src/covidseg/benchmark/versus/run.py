"""The suite `versus`, from the command to its table: jobs, scores, `versus.md`, `versus.json` and their curves."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from covidseg.benchmark.contest import hardware
from covidseg.benchmark.versus.curves import draw
from covidseg.benchmark.versus.export import export
from covidseg.benchmark.versus.job import CURVE, FACTS, Job
from covidseg.benchmark.versus.sheet import CONTENDERS, Line, markdown, to_plain
from covidseg.config.paths import ROOT
from covidseg.data.prepare.run import listing, plain, prepare
from covidseg.data.protocol import Division
from covidseg.data.store import PreparedDataset
from covidseg.nets.cost import meta_network, multiply_adds
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import csv_lines, json_text, read_json, write_text


def run(cfg: DictConfig) -> None:
    """Train, predict and score each contender on each fold; print the table, write it to `cfg.output`.

    All contenders of a fold come before the next fold: whatever else the machine does meets all of them, and what has
    been measured when the command is stopped is of the same patients.
    """
    options = cfg.versus
    wanted = _wanted(options)
    data = [one for one in HydraConfig.get().overrides.task if one.startswith(("data=", "data.", "paths.data="))]
    if "data" not in cfg:
        raise BadInput("data", "is not given", "data=phantom, or your own: data=folder data.root=...")
    # No case is kept for validation: the others would train on it, too.
    overrides = [*shlex.split(str(options.train)), *data, "task=lesion", "data.splits.validation_fraction=0"]
    training = hydra.compose("train", overrides=overrides)
    dataset = prepare(training.data, training.paths)
    output = Path(cfg.output) / "versus"
    found = listing(plain(training.data))
    scans = export(dataset, found.cases, "lesion", output / "raw")
    jobs = {
        contender: _jobs(contender, dataset, training, scans, output, options, overrides)
        for contender in wanted
        if _is_installed(contender)
    }
    done: dict[str, list[Job]] = {contender: [] for contender in jobs}
    told = f"{options.minutes:g} minutes of training each, {dataset.name}, seed {options.seed}; mean over test cases."
    for number, fold in enumerate([(), *zip(*jobs.values(), strict=True)]):  # before the first: who is absent
        for job in fold:
            _work(job, f"{job.contender}: {number} of {len(jobs[job.contender])}")
            done[job.contender].append(job)
        lines = [_line(contender, done.get(contender), data, training) for contender in wanted]
        write_text(output / "versus.md", markdown(lines, told) + "\n")  # what is measured stays
    numbers = {"hardware": hardware(), "minutes": options.minutes, "seed": options.seed, "data": dataset.folder.name}
    numbers["lines"] = to_plain(lines)
    write_text(output / "versus.json", json_text(numbers))
    draw({line.title: line.curves for line in lines if line.facts}, output / "versus.png")
    print(markdown(lines, told))
    print(f"{output}/versus.md, versus.json, versus.png")


def _is_installed(contender: str) -> bool:
    return find_spec(CONTENDERS[contender][2]) is not None


def _line(contender: str, jobs: Sequence[Job] | None, data: Sequence[str], training: DictConfig) -> Line:
    """What the jobs that are done came to; None: the contender's package is missing."""
    if jobs is None:
        return Line(contender, (), (), absent=f"not installed ({CONTENDERS[contender][2]}): pip install -e '.[bench]'")
    facts = [_facts(Path(job.folder)) for job in jobs]
    rows = [row for job in jobs for row in _scored(job, data, training)]
    return Line(contender, facts, rows, [_curve(job) for job in jobs])


def _wanted(options: DictConfig) -> list[str]:
    wanted = [str(name) for name in options.contenders]
    for name in wanted:
        if name not in CONTENDERS:
            raise BadInput(f"versus.contenders={name}", "there is no such contender", f"any of {', '.join(CONTENDERS)}")
    if not isinstance(options.minutes, int | float) or not options.minutes > 0:
        raise BadInput(f"versus.minutes={options.minutes}", "is no time", "give the minutes that each may train")
    return wanted


def _jobs(
    contender: str,
    dataset: PreparedDataset,
    training: DictConfig,
    scans: Path,
    output: Path,
    options: DictConfig,
    overrides: Sequence[str],
) -> list[Job]:
    """One for each fold of data without a test set, else one."""
    folds = Division.of_prepared(dataset).needed(["lesion"])
    if options.folds is not None and folds is not None:
        folds = folds[: options.folds]
    size = tuple(training.training.patch_size_zyx)
    cost = multiply_adds(meta_network(training.model), size)
    jobs = []
    for fold in [None] if folds is None else folds:
        split = dataset.split(fold)
        held_out = [*split.test, *split.external]
        jobs.append(
            Job(
                contender=contender,
                folder=str((output / contender / f"fold{0 if fold is None else fold}").absolute()),
                scans=str(scans.absolute()),
                train=tuple(_annotated(dataset, split.train)),
                test=tuple(_annotated(dataset, held_out)),
                fold=fold,
                minutes=float(options.minutes),
                seed=int(options.seed),
                spacing_zyx=tuple(map(float, training.data.spacing_zyx)),
                patch_size_zyx=size,
                batch_size=int(training.training.batch_size),
                window=tuple(map(float, training.data.window)),
                multiply_adds=cost,
                overrides=tuple(overrides),
            )
        )
    return jobs


def _annotated(dataset: PreparedDataset, cases: Iterable[str]) -> list[str]:
    return [case for case in cases if "lesion" in dataset.cases[case].annotated]


def _work(job: Job, told: str) -> None:
    """Have a process of its own do the job, unless it is done; the same job only."""
    folder = Path(job.folder)
    if "peak_bytes" in _facts(folder):  # what is added last
        if Job.load(folder / "job.json") != job:
            wrong = "holds what was done with other data, minutes or options"
            raise BadInput(f"output={folder.parents[1].name}", wrong, "choose another output=, or remove it")
        print(f"{told}: done before")
        return
    path = job.save()
    print(f"{told}: {len(job.train)} training cases, {job.minutes:g} min", flush=True)
    module = f"covidseg.benchmark.versus.{CONTENDERS[job.contender][1]}"
    with open(folder / "output.log", "w", encoding="utf-8") as log:
        child = subprocess.Popen([sys.executable, "-m", module, str(path)], stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not _facts(folder):
        raise CovidSegError("versus", f"{told} failed with status {child.returncode}", f"see {folder / 'output.log'}")
    facts = _facts(folder)
    cpu = used.ru_utime + used.ru_stime
    write_text(folder / FACTS, json_text({**facts, "peak_bytes": used.ru_maxrss * 1024, "cpu_seconds": cpu}))


def _facts(folder: Path) -> dict[str, Any]:
    """What a job left; empty where it is not done."""
    path = folder / FACTS
    return read_json(path) if path.exists() else {}


def _scored(job: Job, data: Sequence[str], training: DictConfig) -> list[dict[str, str]]:
    """Rows of cases.csv that evaluate.py gives for the job's masks."""
    output = Path(job.folder) / "scores"
    if not (output / "metrics.json").exists():
        spacing = ",".join(map(str, training.data.spacing_zyx))
        fold = [] if job.fold is None else [f"fold={job.fold}"]
        arguments = [*data, f"data.spacing_zyx=[{spacing}]", *fold, *_splits(training)]
        command = [str(ROOT / "src" / "evaluate.py"), f"predictions={job.masks}", "task=lesion", f"output={output}"]
        done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CovidSegError("versus", f"evaluate.py says: {last}", f"look at {job.masks}")
    return csv_lines(output / "cases.csv")


def _splits(training: DictConfig) -> list[str]:
    """How the data are divided, so that the scores are of the same sets."""
    splits = training.data.splits
    return [f"data.splits.{key}={splits[key]}" for key in ("test_fraction", "validation_fraction", "folds", "seed")]


def _curve(job: Job) -> list[tuple[float, float]]:
    return [(float(row["seconds"]), float(row["loss"])) for row in csv_lines(Path(job.folder) / CURVE)]
