"""What several tests of the data path share."""

import numpy as np
import pytest

from volumes import small_chest, write_volume


@pytest.fixture(name="write_volume")
def write_volume_fixture():
    return write_volume


@pytest.fixture(name="small_chest")
def small_chest_fixture():
    return small_chest


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(["a", "b"])` -> root of a `folder` data set of small cases of those names."""

    def make(names=("a", "b", "c"), root=None, csv=None, lesion_free=(), **grid):
        root = root or tmp_path / "raw"
        for seed, name in enumerate(names):
            hu, labels = small_chest(seed, name not in lesion_free)
            write_volume(root / "images" / f"{name}.nii.gz", hu, **grid)
            write_volume(root / "lungs" / f"{name}.nii.gz", (labels > 0).astype(np.uint8), **grid)
            write_volume(root / "lesions" / f"{name}.nii.gz", (labels == 2).astype(np.uint8), **grid)
        if csv:
            (root / "cases.csv").write_text(csv)
        return root

    return make


@pytest.fixture
def data_config():
    """`data_config(root, **changes)` -> the `data` section of a folder data set, for small cases and no processes."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from covidseg.config.paths import CONF

    def make(root, *overrides, **changes):
        fixed = [
            "data=folder",
            f"data.root={root}",
            "data.spacing_zyx=[9,9,9]",
            "data.workers=0",
            "data.splits.folds=0",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("prepare", overrides=[*fixed, *overrides])
        return {**OmegaConf.to_container(cfg.data, resolve=True), **changes}

    return make
