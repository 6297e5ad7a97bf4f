"""What several tests of the data path share."""

import numpy as np
import pytest
import SimpleITK as sitk

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_volume(path, array, spacing_zyx=(8.0, 9.0, 9.0), direction=IDENTITY):
    """Write an array with its grid in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_zyx[::-1])
    image.SetOrigin((-100.0, 50.0, 7.5))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def small_chest(seed, lesion=True):
    """(HU, label map) of 16 x 28 x 32 voxels: a body with two lungs and one lesion."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:16, :28, :32]
    body = ((y - 14) / 11) ** 2 + ((x - 16) / 14) ** 2 < 1
    labels = np.zeros((16, 28, 32), np.uint8)
    for centre in (10, 22):
        labels[((z - 8) / 6.5) ** 2 + ((y - 14) / 7) ** 2 + ((x - centre) / 4.5) ** 2 < 1] = 1
    if lesion:
        middle = (8, 16 + seed % 3, 10)
        spot = sum((axis - at) ** 2 for axis, at in zip((z, y, x), middle, strict=True)) < 9
        labels[spot & (labels == 1)] = 2
    hu = np.choose(labels, [np.where(body, 40, -1000), -850, -400]) + rng.normal(0, 30, labels.shape)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), labels


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

    from covidseg.paths import CONF

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
