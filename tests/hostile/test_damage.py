"""FAULTS K8 and K10: what time and other versions do to a prepared folder and to a checkpoint."""

import hashlib
import io
import json

import pytest
import torch

from covidseg.data.prepare.case import _foreground
from covidseg.data.prepare.run import prepare
from covidseg.data.store import PreparedDataset
from covidseg.runs.checkpoints import load_checkpoint, require_training_state
from covidseg.system.errors import BadInput


@pytest.fixture
def options(tmp_path, write_scan):
    """A folder data set of three scans, as the `data` section of a configuration has it."""
    from hydra import compose, initialize_config_dir

    from covidseg.config.paths import CONF
    from covidseg.data.prepare.run import plain
    from covidseg.scans.write import write_mask

    from covidseg.scans.read import read_scan  # isort: skip

    for number in range(3):
        path = tmp_path / f"raw/images/c{number}.nii.gz"
        voxels, _ = write_scan(path, seed=number)
        (tmp_path / "raw/lesions").mkdir(exist_ok=True)
        mask = (voxels < -600).astype("uint8")
        mask[:5] = mask[-5:] = 0
        write_mask(tmp_path / f"raw/lesions/c{number}.nii.gz", mask, read_scan(path).geometry)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        arguments = [f"data.root={tmp_path}/raw", "data.spacing_zyx=[9,7,7]", "data.workers=0", "data.splits.folds=0"]
        cfg = compose("prepare", overrides=["data=folder", *arguments, "data.splits.validation_fraction=0"])
    return plain(cfg.data)


def test_k8_a_flipped_byte_in_any_file_of_a_prepared_folder_is_mended_by_preparing_again(options, tmp_path):
    paths = {"data": str(tmp_path / "data")}
    folder = prepare(options, paths).folder
    honest = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    voxels = {path: content for path, content in honest.items() if path.suffix != ".json" and path.name[0] != "."}
    for path, content in honest.items():
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
            with pytest.raises(BadInput, match=r"run src/prepare\.py"):  # a machine without the scans
                for case in PreparedDataset.open(folder).cases.values():
                    case.verify()
            dataset = prepare(options, paths)  # the remedy, and what training does by itself
            for case in dataset.cases.values():
                case.verify()
            now = {other: other.read_bytes() for other in voxels}
            assert dataset.folder == folder and now == voxels, path
    assert json.loads((folder / "dataset.json").read_text())["cases"]


def signed(path, content):
    stream = io.BytesIO()
    torch.save(content, stream)
    path.write_bytes(stream.getvalue() + b"covidseg-sha256:" + hashlib.sha256(stream.getvalue()).digest())
    return path


STATE = {
    "state_dict": {"network.weight": torch.zeros(2)},
    "global_step": 4,
    "epoch": 0,
    "loops": {},
    "callbacks": {},
    "optimizer_states": [{}],
    "lr_schedulers": [{}],
}


@pytest.mark.parametrize(
    ("version", "said"),
    [("2.6.6", ""), ("2.6.99", ""), ("2.5.1", "last.ckpt was written by Lightning 2.5.1: migrated to 2.6")],
)
def test_k10_a_checkpoint_of_an_older_lightning_is_migrated_aloud(tmp_path, version, said):
    path = signed(tmp_path / "last.ckpt", {**STATE, "pytorch-lightning_version": version})
    assert require_training_state(path, load_checkpoint(path)).startswith(said)


@pytest.mark.parametrize("version", ["2.7.0", "3.0.0.dev1"])
def test_k10_a_checkpoint_of_a_newer_lightning_is_refused(tmp_path, version):
    path = signed(tmp_path / "last.ckpt", {**STATE, "pytorch-lightning_version": version})
    with pytest.raises(BadInput, match=rf"was written by Lightning {version}, and .* -> pip install"):
        require_training_state(path, load_checkpoint(path))


def test_k10_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = signed(tmp_path / "last.ckpt", {**STATE, "covidseg_format": 2})
    with pytest.raises(BadInput, match="has format 2, this code reads 1 -> use the code that wrote it"):
        load_checkpoint(path)


@pytest.mark.parametrize("key", [key for key in STATE if key != "state_dict"])
def test_k10_a_checkpoint_without_the_state_of_a_training_is_refused(tmp_path, key):
    content = {**STATE, "pytorch-lightning_version": "2.6.6"}
    path = signed(tmp_path / "last.ckpt", {name: value for name, value in content.items() if name != key})
    with pytest.raises(BadInput, match=f"is none that training can go on from .it lacks {key}"):
        require_training_state(path, load_checkpoint(path))


def test_the_remembered_foreground_follows_from_the_mask(tmp_path, options):
    """Not from the digest of the code that made it: an edit that changes no voxel changes no patch."""
    import numpy as np

    mask = (np.random.default_rng(0).random((20, 30, 30)) < 0.3).astype(np.uint8)
    first, again = _foreground(mask, 50), _foreground(mask.copy(order="F"), 50)
    assert first == again and len(first["lung"]) == 50
    assert _foreground(1 - mask, 50) != first
    paths = {"data": str(tmp_path / "data")}
    drawn = prepare(options, paths).cases["c0"].info["foreground"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("covidseg.data.prepare.run.code_digest", lambda files: "another")
        again = prepare(options, {"data": str(tmp_path / "other")})
    assert again.cases["c0"].info["foreground"] == drawn
