"""A suite of contests, from the command to its files: `<suite>.json` and `<suite>.md`."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from covidseg.benchmark import CONTESTS
from covidseg.benchmark.contest import OURS, compete, hardware, markdown
from covidseg.system.files import json_text, write_text

_HEAD = (
    "Times are of one machine and move with its load; what counts is the ratio of CPU time within a round, where ours\n"
    "is 1. Peers stand as usually written and, where it makes a difference, tuned."
)


def run(cfg: DictConfig) -> None:
    """The suite `cfg.suite`, or `all` of them; prints each table as it is there and writes them to `cfg.output`."""
    wanted = CONTESTS if cfg.suite == "all" else (cfg.suite,)
    warnings.filterwarnings("ignore")  # the peers' words to their own users
    machine = hardware()
    parts = [f"# {cfg.suite}", "", _HEAD, "", _told(machine)]
    print("\n".join(parts[4:]))
    measured: list[dict[str, Any]] = []
    for name in wanted:
        for contest in import_module(f"covidseg.benchmark.{name}").contests(cfg):
            outcomes, told = compete(contest)
            text = markdown(contest.title, outcomes, told)
            print(f"\n{text}")
            parts += ["", text]
            measured.append({"contest": contest.title, "outcomes": [asdict(one) for one in outcomes]})
            _write(Path(cfg.output), cfg.suite, parts, machine, measured)  # what is measured stays, whatever comes


def _write(
    folder: Path, suite: str, parts: Sequence[str], machine: dict[str, Any], measured: list[dict[str, Any]]
) -> None:
    write_text(folder / f"{suite}.md", "\n".join(parts) + "\n")
    write_text(folder / f"{suite}.json", json_text({"hardware": machine, "contests": measured, "ours": OURS}))


def _told(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    computed = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['device']}"
    return f"{computed}; {versions}."
