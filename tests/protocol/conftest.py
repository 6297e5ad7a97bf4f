"""A data set without a test set, in the layout of the public one, and the commands that meet it."""

import importlib
import sys

import numpy as np
import pytest

from covidseg.data.prepare.splits import published_folds
from volumes import small_chest, write_volume

SMALL = (
    "recipe=smoke", "model=unet3d", "model.width=2", "data.spacing_zyx=[9,9,9]", "training.patch_size_zyx=[16,16,16]",
    "inference.roi_zyx=[32,32,32]", "training.max_steps=2", "training.validate_every=2", "training.checkpoint_every=1",
    "data.workers=0", "logger=csv", "trainer=cpu",
)  # fmt: skip


@pytest.fixture
def write_folder(tmp_path):
    """`write_folder("abc", lungs="a", csv=...)` -> options of a `folder` data set.

    `lungs`: who has a lung mask; `healthy`: whose lesion mask is empty.
    """

    def write(names, lungs=None, csv=None, healthy=()):
        root = tmp_path / "raw"
        for seed, name in enumerate(names):
            hu, labels = small_chest(seed, name not in healthy)
            write_volume(root / "images" / f"{name}.nii.gz", hu)
            write_volume(root / "lesions" / f"{name}.nii.gz", (labels == 2).astype(np.uint8))
            if lungs is None or name in lungs:
                write_volume(root / "lungs" / f"{name}.nii.gz", (labels > 0).astype(np.uint8))
        if csv:
            (root / "cases.csv").write_text(csv)
        return ["data=folder", f"data.root={root}"]

    return write


@pytest.fixture(scope="session")
def ct_seg(tmp_path_factory):
    """COVID-19-CT-Seg as published: twenty small chests, half of them as grey levels of a window."""
    root = tmp_path_factory.mktemp("raw") / "COVID-19-CT-Seg"
    folds = published_folds("covid19_ct_seg_16train.json")
    for seed, name in enumerate(sorted({case for fold in folds for case in fold["train"] + fold["test"]})):
        hu, labels = small_chest(seed)
        if name.startswith("radiopaedia"):
            hu = np.rint((np.clip(hu, -1250, 250) + 1250) / 1500 * 255).astype(np.uint8)
        write_volume(root / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", hu)
        mask = np.choose(labels, [0, 2, 3]).astype(np.uint8)
        write_volume(root / "Lung_and_Infection_Mask" / f"{name}.nii.gz", mask)
    return root


@pytest.fixture(scope="session")
def prepared_here(tmp_path_factory):
    """One place for prepared cases: a test borrows what another one prepared."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, prepared_here):
    """`command("train", "fold=0")`, in `tmp_path`, in this process -> (exit status, stdout, stderr).

    "sweep" is train.py with nothing made smaller.
    """

    def run(name, *arguments):
        main = importlib.import_module(f"covidseg.cli.{'train' if name == 'sweep' else name}").main
        small = (*SMALL, f"paths.data={prepared_here}") if name in ("train", "baseline") else ()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *small, *arguments])
        monkeypatch.chdir(tmp_path)
        try:
            main()
            status = 0
        except SystemExit as leave:
            status = leave.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
