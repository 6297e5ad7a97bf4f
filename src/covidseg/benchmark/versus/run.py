"""The suite `versus`, from the command to its table: jobs, scores, `versus.md`, `versus.json` and their curves."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from covidseg.benchmark.contest import hardware
from covidseg.benchmark.versus.curves import draw
from covidseg.benchmark.versus.export import export
from covidseg.benchmark.versus.job import CURVE, FACTS, Job
from covidseg.config.paths import ROOT
from covidseg.data.prepare.run import listing, plain, prepare
from covidseg.data.protocol import Division
from covidseg.data.store import PreparedDataset
from covidseg.evaluation.metrics import METRICS
from covidseg.nets.cost import meta_network, multiply_adds
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import csv_lines, json_text, read_json, write_text

CONTENDERS = {  # name -> (title, module, package it needs)
    "ours": ("covidseg, its recipe", "ours", "covidseg"),
    "nnunet": ("nnU-Net as it plans", "nnunet", "nnunetv2"),
    "nnunet_ours": ("nnU-Net, our voxels, patch and compute", "nnunet", "nnunetv2"),
    "dynunet": ("MONAI's DynUNet, plain loop", "dynunet", "monai"),
}
SHOWN = ("dice", "nsd", "lesion_f1")
STILL_FALLING = 0.05  # share of the loss's whole fall that fell to its last fifth


@dataclass(frozen=True)
class Line:
    """A contender over all folds."""

    contender: str
    facts: Sequence[dict[str, Any]]  # one for each fold
    rows: Sequence[dict[str, str]]  # of cases.csv, of all folds
    curves: Sequence[Sequence[tuple[float, float]]] = ()  # (seconds, loss), one for each fold
    absent: str = ""

    @property
    def title(self) -> str:
        return CONTENDERS[self.contender][0]

    def mean(self, fact: str) -> float:
        return mean(float(facts[fact]) for facts in self.facts)

    def score(self, metric: str) -> list[float]:
        """Of the cases where it is defined."""
        return [float(row[metric]) for row in self.rows if row[metric]]

    @property
    def converged(self) -> bool:
        return all(facts["falling"] is not None and facts["falling"] < STILL_FALLING for facts in self.facts)


def run(cfg: DictConfig) -> None:
    """Train, predict and score each contender on each fold; print the table, write it to `cfg.output`."""
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
    lines = []
    for contender in wanted:
        _, _, package = CONTENDERS[contender]
        if find_spec(package) is None:
            lines.append(Line(contender, (), (), absent=f"not installed ({package}): pip install -e '.[bench]'"))
            continue
        jobs = _jobs(contender, dataset, training, scans, output, options, overrides)
        for number, job in enumerate(jobs, start=1):
            _work(job, f"{contender}: {number} of {len(jobs)}")
        facts = [_facts(Path(job.folder)) for job in jobs]
        rows = [row for job in jobs for row in _scored(job, data, training)]
        lines.append(Line(contender, facts, rows, [_curve(job) for job in jobs]))
        write_text(output / "versus.md", markdown(lines, dataset, options) + "\n")  # what is measured stays
    numbers = {"hardware": hardware(), "minutes": options.minutes, "data": dataset.folder.name, "lines": _plain(lines)}
    write_text(output / "versus.json", json_text(numbers))
    draw({line.title: line.curves for line in lines if line.facts}, output / "versus.png")
    print(markdown(lines, dataset, options))
    print(f"{output}/versus.md, versus.json, versus.png")


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


def markdown(lines: Sequence[Line], dataset: PreparedDataset, options: DictConfig) -> str:
    """The contenders beside each other; who is not converged is said, and nothing is concluded from it."""
    titles = {metric.name: metric.heading for metric in METRICS}
    head = ["contender", *(titles[name] for name in SHOWN), "n", "patches/s", "GB", "s a scan", "loss at the end"]
    text = [
        f"{options.minutes:g} minutes of training each, {dataset.name}, seed {options.seed}; mean over test cases.",
        "",
        f"| {' | '.join(head)} |",
        "|---|" + "--:|" * (len(head) - 2) + "---|",
    ]
    text += [f"| {' | '.join(_cells(line))} |" for line in lines]
    text += ["", *(f"- {line.title}: {line.facts[0]['what']}." for line in lines if line.facts)]
    rising = [line.title for line in lines if line.facts and not line.converged]
    if rising:
        text += ["", f"Not converged: {'; '.join(rising)}. Nothing is concluded from how they stand."]
    return "\n".join(text)


def _cells(line: Line) -> list[str]:
    if line.absent:
        return [line.title, line.absent, *[""] * (len(SHOWN) + 4)]
    scores = [line.score(name) for name in SHOWN]
    tests = len(line.rows)
    scans = tests / len(line.facts)
    return [
        line.title,
        *(f"{mean(values):.3f}" if values else "-" for values in scores),
        str(tests),
        f"{line.mean('patches') / line.mean('seconds'):.2f}",
        f"{max(facts['peak_bytes'] for facts in line.facts) / 1e9:.1f}",
        f"{line.mean('predicting') / scans:.1f}",
        "level" if line.converged else "still falling: not converged",
    ]


def _plain(lines: Sequence[Line]) -> list[dict[str, Any]]:
    kept = ("set", "case", "structure", *SHOWN)
    return [
        {
            "contender": line.contender,
            "title": line.title,
            "absent": line.absent,
            "converged": bool(line.facts) and line.converged,
            "folds": list(line.facts),
            "cases": [{key: row[key] for key in kept if key in row} for row in line.rows],
        }
        for line in lines
    ]


def _curve(job: Job) -> list[tuple[float, float]]:
    return [(float(row["seconds"]), float(row["loss"])) for row in csv_lines(Path(job.folder) / CURVE)]
