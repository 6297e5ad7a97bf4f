"""Fixtures that several areas use."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as every command does: busy cores are no place to spin
# CI repeats the same examples every time; a run by hand looks for new ones. No deadlines: machines are busy.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """`in_process("evaluate", "run=x", ...)`, in `tmp_path` -> (exit status, stdout, stderr).

    A command in this process: seconds of imports less than in a process of its own.
    """

    def run(name, *arguments):
        main = importlib.import_module(f"covidseg.cli.{name}").main
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.chdir(tmp_path)
        try:
            main()
            status = 0
        except SystemExit as leave:
            status = leave.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def make_run(tmp_path):
    """`make_run("lesion", **{"model.width": 4})` -> a run folder with an untrained network, as training leaves it."""
    import torch
    from hydra import compose, initialize_config_dir

    from covidseg.config.build import instantiate
    from covidseg.config.paths import CONF
    from covidseg.runs.checkpoints import AtomicCheckpointIO
    from covidseg.runs.folder import RunFolder, run_dir

    def make(task="lesion", seed=0, **overrides):
        changes = [f"{key}={value}" for key, value in overrides.items()]
        base = [f"task={task}", f"seed={seed}", "recipe=smoke", f"paths.runs={tmp_path}/runs", f"paths.data={tmp_path}"]
        base += ["data.spacing_zyx=[9,7,7]", "inference.roi_zyx=[32,32,32]"]  # small volumes, few windows
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[*base, *changes])
        folder = RunFolder(run_dir(cfg))
        folder.claim(cfg)
        torch.manual_seed(seed)
        network = instantiate(cfg.model, "model")
        state = {f"network.{name}": value for name, value in network.state_dict().items()}
        folder.checkpoints.mkdir()
        AtomicCheckpointIO().save_checkpoint({"state_dict": state}, folder.checkpoints / "last.ckpt")
        return Path(folder.path)

    return make


@pytest.fixture
def write_scan():
    """`write_scan(path)` -> (voxels, image): a small chest-like scan, written in the format of its name.

    Body of soft tissue in air with two lungs; noise gives it more than 256 values. The grid is oblique and anisotropic.
    """

    def write(path, shape=(20, 40, 44), seed=0):
        rng = np.random.default_rng(seed)
        z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
        body = ((y - shape[1] / 2) / (0.45 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.47 * shape[2])) ** 2 < 1
        lungs = [
            ((y - shape[1] / 2) / 10) ** 2 + ((x - centre) / 7) ** 2 + ((z - shape[0] / 2) / (0.45 * shape[0])) ** 2 < 1
            for centre in (0.3 * shape[2], 0.7 * shape[2])
        ]
        hu = np.where(lungs[0] | lungs[1], -820, np.where(body, 40, -1000)) + rng.normal(0, 40, shape)
        image = sitk.GetImageFromArray(np.clip(np.rint(hu), -1024, 3071).astype(np.int16))
        image.SetSpacing((6.5, 7.0, 9.5))
        image.SetOrigin((-120.5, -80.25, 33.0))
        angle = np.deg2rad(10)
        image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return sitk.GetArrayFromImage(image), image

    return write


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared folder of eight small cases: c0-c3 train, c4-c5 validation, c6 test, c7 external and lesion-free."""
    from covidseg.data.prepare.grid import Grid
    from covidseg.data.store import ARRAYS, FORMAT, MARKER
    from covidseg.scans.geometry import Geometry
    from covidseg.system.files import sha256, write_json

    folder = tmp_path_factory.mktemp("data") / "small-0123456789ab"
    names = [f"c{number}" for number in range(8)]
    rows = []
    for number, name in enumerate(names):
        shape = (20 + number, 36, 44 - number)
        rng = np.random.default_rng(number)
        z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
        labels = np.zeros(shape, np.uint8)
        for centre in (0.3, 0.7):
            labels[
                ((z / shape[0] - 0.5) / 0.45) ** 2
                + ((y / 36 - 0.5) / 0.35) ** 2
                + ((x / shape[2] - centre) / 0.17) ** 2
                < 1
            ] = 1
        if name != "c7":
            labels[(labels == 1) & (y > 22) & (z > 8)] = 2
        image = np.choose(labels, [40, -850, -400]) + rng.normal(0, 40, shape)
        case = folder / name
        case.mkdir(parents=True)
        np.save(case / "image.npy", np.rint(image).astype(np.int16))
        np.save(case / "mask.npy", labels)
        np.savez_compressed(case / "reference.npz", labels=labels)
        geometry = Geometry(shape, (6.0, 5.0, 5.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
        grid = Grid(geometry, tuple((0, n) for n in shape), shape, geometry.spacing_zyx)
        foreground = {part: np.argwhere(labels == value)[::7].tolist() for part, value in (("lung", 1), ("lesion", 2))}
        volumes = {part: float((labels == value).sum() * 0.15) for part, value in (("lung", 1), ("lesion", 2))}
        sums = {file: sha256(case / file) for file in ARRAYS}
        write_json(
            case / "case.json", {"grid": grid.to_dict(), "foreground": foreground, "volume_ml": volumes, "sha256": sums}
        )
        identity = {"id": name, "patient": f"p{number}", "site": "B" if name == "c7" else "A"}
        rows.append({**identity, "annotated": ["lung", "lesion"], "sha256": sha256(case / "case.json")})
    index = {"format": FORMAT, "name": "small", "hash": "0123456789ab", "spacing_zyx": [6.0, 5.0, 5.0], "cases": rows}
    write_json(folder / "dataset.json", index)
    split = {"train": names[:4], "validation": names[4:6], "test": names[6:7], "external": names[7:]}
    write_json(folder / "splits.json", {"fixed": split, "folds": [split]})
    write_json(folder / MARKER, {name: sha256(folder / name) for name in ("dataset.json", "splits.json")})
    return folder


@pytest.fixture
def train_options(prepared, tmp_path):
    """Command line of a run of seconds on the small prepared folder: `train.py *train_options ...`."""
    return [
        "recipe=smoke", "model=unet3d", "model.width=2", f"data.prepared={prepared}", f"paths.runs={tmp_path}/runs",
        f"paths.data={tmp_path}/data", "logger=csv", "trainer=cpu", "training.patch_size_zyx=[16,16,16]",
        "inference.roi_zyx=[32,48,48]", "name=t", "row=r",
    ]  # fmt: skip


@pytest.fixture
def train_config(train_options):
    """`train_config("seed=1")` -> the composed configuration of such a run."""
    from hydra import compose, initialize_config_dir

    from covidseg.config.paths import CONF

    def make(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", overrides=[*train_options, *overrides])

    return make
