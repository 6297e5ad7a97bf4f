"""What the report's tests and intervals hold, by simulation: type I error and power with seeds, coverage."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy import stats

from covidseg.evaluation.comparison import difference_error
from covidseg.evaluation.statistics import mean_interval, permutation_p
from covidseg.system.files import json_text, write_text
from covidseg.system.terminal import show_progress

LEVEL = 0.05
PATIENT_SD, REST_SD = 0.085, 0.03  # of a row's own scores of patients: over networks of any seed, over one seed's
SHAPE = (5.0, 1.5)  # of the beta distribution that cases' Dice is drawn from in trials of an interval,
MISSED = 0.05  # of which this share is 0 instead


def run(cfg: DictConfig) -> None:
    """Print the tables; write them and their numbers to `cfg.output`."""
    measured = simulate(**cfg.statistics)
    text = markdown(measured)
    print(text)
    write_text(Path(cfg.output) / "statistics.md", text + "\n")
    write_text(Path(cfg.output) / "statistics.json", json_text(measured))


def simulate(
    trials: int,
    patients: Sequence[int],
    seed_sds: Sequence[float],
    seeds: Sequence[int],
    difference: float,
    interval_patients: Sequence[int],
) -> dict[str, Any]:
    """Shares of `trials` in which two rows are called different, and in which an interval holds the true mean.

    Each of `patients` x `seed_sds` x `seeds` (of both rows; 1 is the test of two trained networks): the rows are equal
    methods (`type_one`), or `difference` apart (`power`).
    """
    settings = list(product(patients, seed_sds, seeds))
    lines = [
        {
            "patients": n,
            "seed_sd": sd,
            "seeds": count,
            "type_one": rejected(trials, n, sd, count, 0.0),
            "power": rejected(trials, n, sd, count, difference),
        }
        for n, sd, count in show_progress(iter(settings), len(settings), "comparing equal methods")
    ]
    covered = {str(n): coverage(trials, n) for n in interval_patients}
    return {"trials": trials, "difference": difference, "comparisons": lines, "coverage": covered}


def rejected(
    trials: int,
    patients: int,
    seed_sd: float | tuple[float, float],
    seeds: int | tuple[int, int],
    difference: float,
    draw_seed: int = 0,
) -> float:
    """The share of trials in which two rows, `difference` apart, differ by the report's test. A pair: one for each row.

    Dice is drawn from the model of `comparison`, with what is left of it skewed to low values.
    """
    draw = np.random.default_rng(draw_seed)
    counts = seeds if isinstance(seeds, tuple) else (seeds, seeds)
    sds = seed_sd if isinstance(seed_sd, tuple) else (seed_sd, seed_sd)
    hits = 0
    for _ in range(trials):
        ours, theirs = (_scores(draw, patients, count, sd) for count, sd in zip(counts, sds, strict=True))
        ours = ours + difference
        found = float(ours.mean() - theirs.mean())
        if max(counts) > 1:
            p = difference_error(ours, theirs).p(found)
        else:
            p = permutation_p(ours[0] - theirs[0], range(patients))
        hits += p is not None and p <= LEVEL
    return hits / trials


def coverage(trials: int, patients: int, draw_seed: int = 0) -> float:
    """How often the bootstrap interval of a mean Dice holds the true one."""
    draw = np.random.default_rng(draw_seed)
    truth = float(stats.beta.mean(*SHAPE)) * (1 - MISSED)
    held = 0
    for _ in range(trials):
        values = draw.beta(*SHAPE, patients) * (draw.uniform(size=patients) >= MISSED)
        low, high = mean_interval(values, range(patients)) or (np.nan, np.nan)
        held += low <= truth <= high
    return held / trials


def markdown(measured: Mapping[str, Any]) -> str:
    """What `simulate` gave, as Markdown."""
    lines = [
        f"Two rows compared in {measured['trials']:,} trials for each line, by the report's own test at 5 %. Type I",
        f"error: equal methods called different. Power: a true difference of {measured['difference']} Dice found. One",
        "seed is the test of two trained networks; the spread of their seeds is in no test then.",
        "",
        "| patients | sd over seeds | seeds of each row | type I error | power |",
        "|--:|--:|--:|--:|--:|",
    ]
    for one in measured["comparisons"]:
        shares = f"{one['type_one']:.1%} | {one['power']:.1%}"
        lines.append(f"| {one['patients']} | {one['seed_sd']} | {one['seeds']} | {shares} |")
    lines += [
        "",
        "The 95 % interval of a mean Dice (skewed, one case in twenty missed) holds the true mean in:",
        "",
        "| patients | trials with the true mean inside |",
        "|--:|--:|",
        *(f"| {n} | {share:.1%} |" for n, share in measured["coverage"].items()),
    ]
    return "\n".join(lines)


def _scores(draw: np.random.Generator, patients: int, seeds: int, seed_sd: float) -> np.ndarray:
    """(seed, patient) of one row."""
    own = _skewed(draw, PATIENT_SD / np.sqrt(2), (1, patients))
    rest = _skewed(draw, REST_SD, (seeds, patients))
    return 0.7 + draw.normal(0, seed_sd, (seeds, 1)) + own + rest


def _skewed(draw: np.random.Generator, sd: float, size: tuple[int, ...]) -> np.ndarray:
    """Mean 0, with a long tail of low values: a mirrored gamma distribution of skewness -1."""
    return -(draw.gamma(4.0, sd / 2, size) - 2 * sd)
