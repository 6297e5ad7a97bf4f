"""A run and a prepared folder that an older version made are still good for what they were made for."""

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import covidseg
from covidseg.config.build import admitted
from covidseg.config.moved import _MOVED, with_present_names
from covidseg.data.store import PreparedDataset
from covidseg.runs.folder import RunFolder

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))  # each by the commit that made it


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def older(request, tmp_path):
    """The working folder of somebody who trained `runs/old/unet3d/lesion/seed0` on `prepared/small-...`."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def scored_cases(path):
    with open(path, newline="") as stream:
        return [(row["case"], row["set"], row["structure"], row["reference_ml"]) for row in csv.DictReader(stream)]


RUN = "runs/old/unet3d/lesion/seed0"


def test_its_run_is_scored_and_its_table_written(older, in_process):
    status, _, err = in_process("evaluate", f"run={RUN}", "output=scored")
    assert status == 0, err
    then, now = (scored_cases(older / folder / "cases.csv") for folder in (RUN, "scored"))
    assert then and now == then
    status, out, err = in_process("report", "table=old")
    assert status == 0 and "unet3d" in out, err


def test_its_run_segments_a_new_scan(older, in_process):
    hu = np.load(older / "prepared/small-0123456789ab/c6/image.npy")
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((5.0, 5.0, 6.0))
    (older / "in").mkdir()
    sitk.WriteImage(image, str(older / "in/one.nii.gz"))
    status, _, err = in_process("predict", f"run={RUN}", "input=in", "output=out")
    assert status == 0, err
    assert sitk.ReadImage(str(older / "out/one_lesion.nii.gz")).GetSize() == image.GetSize()
    assert covidseg.load(older / RUN).task.name == "lesion"


def test_its_folder_is_not_taken_for_todays_configuration(older, in_process, train_options):
    """Its numbers were made with another padding: they may not stand in a row beside today's."""
    options = [
        option for option in train_options if not option.startswith(("data.prepared", "paths.", "name=", "row="))
    ]
    options += ["name=old", "row=unet3d", "data.prepared=prepared/small-0123456789ab", "training.max_steps=4"]
    options += ["training.validate_every=2", "training.checkpoint_every=2"]
    before = {path: path.read_bytes() for path in (older / RUN).rglob("*") if path.is_file()}
    status, _, err = in_process("train", *options)
    assert status == 2 and "inference.precision is None there, auto here" in err and "_target_" not in err, err
    assert {path: path.read_bytes() for path in before} == before


def test_its_prepared_cases_open(older):
    dataset = PreparedDataset.open(older / "prepared/small-0123456789ab")
    assert len(dataset.cases) == 8 and dataset.cases["c0"].image.dtype == np.int16


def test_every_class_that_moved_is_one_that_a_configuration_may_name(older):
    config = RunFolder(older / RUN).config
    for group in ("augment", "loss", "model"):
        assert config[group]._target_ in admitted(group)
    assert config.optimizer.schedule._target_ in admitted("optimizer")
    assert all(with_present_names({"_target_": f"{old}.X"}) == {"_target_": f"{new}.X"} for old, new in _MOVED.items())
