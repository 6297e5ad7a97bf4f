"""The masks that a run keeps for the viewer: exact, on the prepared grid, and never trusted when read back."""

import io
import zipfile

import numpy as np
import pytest

from covidseg.data.prepare.grid import Grid
from covidseg.evaluation.structures import Structure, Task
from covidseg.runs.predictions import FOLDER, keep, load, on_grid
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

JOINT = Task("joint", 3, (0, 1, 2), {"lesion": Structure((2,), (2,), 3.0), "lung": Structure((1, 2), (1, 2), 1.0)})


def grid_of(shape=(6, 10, 12), box=((1, 5), (0, 10), (2, 12)), size=(4, 10, 10), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    return Grid(Geometry(shape, (5.0, 2.0, 2.0), (0.0, 0.0, 0.0), direction), box, size, (5.0, 2.0, 2.0))


def test_masks_come_back_as_they_were_predicted(tmp_path, rng):
    classes, grid = rng.integers(0, 3, (6, 10, 12)).astype(np.uint8), grid_of()
    keep(tmp_path, "a", classes, grid, JOINT)
    found = load(tmp_path / FOLDER / "a.npz")
    inside = classes[1:5, :, 2:12]
    assert found.keys() == {"lesion", "lung"}
    np.testing.assert_array_equal(found["lesion"], inside == 2)
    np.testing.assert_array_equal(found["lung"], inside > 0)


@pytest.mark.parametrize("fill", [0, 2])
def test_nothing_and_everything_come_back(tmp_path, fill):
    keep(tmp_path, "a", np.full((6, 10, 12), fill, np.uint8), grid_of(), JOINT)
    assert load(tmp_path / FOLDER / "a.npz")["lesion"].mean() == bool(fill)


def test_a_coarser_grid_takes_the_voxel_at_its_centres():
    classes = np.arange(6 * 10 * 12).reshape(6, 10, 12)
    coarse = on_grid(classes, grid_of(box=((0, 6), (0, 10), (0, 12)), size=(3, 5, 4)))
    np.testing.assert_array_equal(coarse, classes[np.ix_([1, 3, 5], [1, 3, 5, 7, 9], [1, 4, 7, 10])])


def test_a_turned_scan_is_turned_back():
    classes = np.arange(6 * 10 * 12).reshape(6, 10, 12)
    whole = {"box": ((0, 6), (0, 10), (0, 12)), "size": (6, 10, 12)}
    turned = on_grid(classes, grid_of(direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1), **whole))
    np.testing.assert_array_equal(turned, classes[:, ::-1, ::-1])


def other(**changes):
    content = {"shape": np.array([2, 3, 4]), "lesion.box": np.array([[0, 2], [0, 3], [0, 4]])}
    return content | {"lesion.bits": np.zeros(3, np.uint8)} | changes


@pytest.mark.parametrize(
    "content",
    [
        other(shape=np.array([2, 3])),
        other(shape=np.array([2, 3, -4])),
        other(shape=np.array([1 << 20, 1 << 20, 1 << 20])),
        other(**{"lesion.box": np.array([[0, 3], [0, 3], [0, 4]])}),
        other(**{"lesion.box": np.array([[-1, 2], [0, 3], [0, 4]])}),
        other(**{"lesion.bits": np.array([object()], object)}),
        other(**{"lesion.bits": np.zeros(3, np.float32)}),
        {"lesion.bits": np.zeros(3, np.uint8)},
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, content):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(BadInput, match=r"^a.npz: holds no masks that a run keeps"):
        load(tmp_path / "a.npz")


def test_a_bomb_is_not_unpacked(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 31,)})
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("lesion.bits.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(1 << 7):
            entry.write(bytes(1 << 24))
    with pytest.raises(BadInput, match="unpacks to more"):
        load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"^b\.npz: holds no masks"):
        load(tmp_path / "b.npz")
