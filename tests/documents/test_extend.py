"""docs/extend.md, step by step as it stands there: files are written, commands run, the new part is what was used."""

import csv
import re
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from omegaconf import OmegaConf

from covidseg.config.paths import ROOT
from documents import EXTEND
from volumes import small_chest, write_volume

TEXT = (ROOT / EXTEND).read_text(encoding="utf-8")
INTO_METRICS = "# src/covidseg/evaluation/metrics.py, into METRICS\n"


@dataclass
class Section:
    files: dict[str, str]  # path -> content
    commands: list[str]
    entry: str = ""  # of METRICS


def sections():
    """{title: Section}; what stands before the first title is done in each of them."""
    found = {}
    for part in re.split(r"^## ", TEXT, flags=re.MULTILINE):
        section = Section({}, [])
        for kind, content in re.findall(r"```(python|yaml|bash)\n(.*?)```", part, re.DOTALL):
            if kind == "bash":
                section.commands.append(content)
            elif content.startswith(INTO_METRICS):
                section.entry = content.removeprefix(INTO_METRICS)
            else:
                section.files[content.splitlines()[0].removeprefix("# ")] = content
        found[part.splitlines()[0]] = section
    return found


SECTIONS = sections()
SETTING = SECTIONS.pop("# Adding your own").commands[0]
STEPS = ["A network", "A block", "A loss", "A callback", "A data set", "A metric"]


def test_each_kind_of_part_has_its_section():
    assert list(SECTIONS) == STEPS
    assert all(section.commands and (section.files or section.entry) for section in SECTIONS.values())


@pytest.fixture(scope="module")
def reader(workspaces):
    return workspaces(EXTEND)


def done(reader, title):
    """Do what a section says; what its last command came to."""
    section = SECTIONS[title]
    for name, content in section.files.items():
        (reader.root / name).parent.mkdir(parents=True, exist_ok=True)
        (reader.root / name).write_text(content)
    came_to = reader.once(SETTING + "\n".join(section.commands))
    assert came_to.status == 0, came_to.err
    return came_to


TRAININGS = {
    "A network": ("two_scales", "model._target_", "mylab.networks.TwoScales"),
    "A block": ("gate", "model.variation._target_", "mylab.blocks.Gate"),
    "A loss": ("focal", "loss._target_", "mylab.losses.FocalLoss"),
    "A callback": ("longest_step", "callbacks.longest_step._target_", "mylab.callbacks.LongestStep"),
}


@pytest.mark.slow
@pytest.mark.parametrize("title", TRAININGS)
def test_a_part_is_trained_with_and_scored(reader, title):
    row, key, target = TRAININGS[title]
    done(reader, title)
    run = reader.root / "runs" / "train" / row / "lesion" / "seed0"
    assert OmegaConf.select(OmegaConf.load(run / "config.yaml"), key) == target
    assert (run / "metrics.json").is_file() and (run / "cases.csv").is_file()
    if title == "A callback":
        with open(run / "metrics.csv", newline="") as stream:
            logged = [float(line["train/largest_gradient"] or 0) for line in csv.DictReader(stream)]
        assert max(logged) > 0


def test_a_data_set_is_prepared(reader):
    patients = reader.root / "patients"
    for seed in range(3):
        hu, labels = small_chest(seed)
        write_volume(patients / f"p{seed}" / "ct.nii.gz", hu)
        write_volume(patients / f"p{seed}" / "lesions.nii.gz", (labels == 2).astype(np.uint8))
    assert "3 cases" in done(reader, "A data set").out
    (patients / "p3").mkdir()
    again = reader.run(SETTING + "\n".join(SECTIONS["A data set"].commands))
    assert again.status == 2 and "p3" in again.out and "has no ct.nii.gz with lesions.nii.gz" in again.out


@pytest.mark.slow
def test_a_metric_is_a_column_and_a_line_of_the_summary(reader):
    done(reader, "A loss")
    (reader.root / "src").unlink()  # of a clone of one's own
    shutil.copytree(ROOT / "src", reader.root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    file = reader.root / "src/covidseg/evaluation/metrics.py"
    start = file.read_text().index("METRICS = (")
    end = file.read_text().index("\n)", start)
    file.write_text(file.read_text()[:end] + "\n" + SECTIONS["A metric"].entry + "," + file.read_text()[end:])
    came_to = done(reader, "A metric")
    assert "Jaccard" in came_to.out
    (scores,) = came_to.called("cases.csv")
    with open(reader.root / scores, newline="") as stream:
        rows = list(csv.DictReader(stream))
    dice, jaccard = ([float(row[name]) for row in rows if row["dice"]] for name in ("dice", "jaccard"))
    assert dice and jaccard == pytest.approx([value / (2 - value) for value in dice])
