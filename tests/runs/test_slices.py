from types import SimpleNamespace

import numpy as np
import pytest

from covidseg.data.prepare.grid import Grid
from covidseg.evaluation.structures import Structure, Task
from covidseg.runs import predictions
from covidseg.runs.slices import Slice, keeping_slices, shown_cases
from covidseg.scans.geometry import Geometry

LESION = Task("lesion", 2, (0, 0, 1), {"lesion": Structure((1,), (2,), 3.0)})
LUNG = Task("lung", 2, (0, 1, 1), {"lung": Structure((1,), (1, 2), 1.0)})


def case(name, lesion_ml, annotated=("lung", "lesion")):
    """Stands for a `PreparedCase` whose prepared grid is the scan's own grid."""
    mask = np.zeros((3, 6, 6), np.uint8)
    mask[1, 1:5, 1:5] = 1
    mask[1, 2:4, 2:4] = 2
    native = Geometry(mask.shape, (5.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    grid = Grid(native, tuple((0, size) for size in mask.shape), mask.shape, native.spacing_zyx)
    volumes = {"lung": 4000.0} | ({"lesion": lesion_ml} if "lesion" in annotated else {})
    image = np.full(mask.shape, -800, np.int16)
    return SimpleNamespace(id=name, annotated=annotated, info={"volume_ml": volumes}, grid=grid, image=image, mask=mask)


def test_most_median_and_least_lesion_are_shown():
    cases = [case(f"c{volume}", volume) for volume in (0, 10, 40, 20, 30, 50)]
    assert shown_cases(LESION, {"test": cases}) == {"c50", "c30", "c10"}
    assert shown_cases(LUNG, {"test": cases}) == {"c50", "c30", "c10"}
    assert shown_cases(LESION, {"test": cases[:2], "external": cases[2:4]}) == {"c10", "c40", "c20"}
    assert shown_cases(LESION, {"test": []}) == set()


def test_lungs_choose_where_there_are_no_lesions():
    assert shown_cases(LUNG, {"test": [case("a", 0), case("b", 0, annotated=("lung",))]}) == {"a", "b"}
    assert shown_cases(LESION, {"test": [case("b", 5, annotated=("lung",))]}) == set()


@pytest.mark.parametrize(("task", "size"), [(LESION, 4), (LUNG, 16)])
def test_segmenting_keeps_slices_and_changes_nothing(task, size, tmp_path):
    shown, hidden = case("shown", 10), case("hidden", 0)
    classes = np.zeros((3, 6, 6), np.uint8)
    classes[1, 0, 0] = 1
    segment = keeping_slices(lambda _: classes, tmp_path, task, {"test": [shown, hidden]})
    assert segment(shown) is classes and segment(hidden) is classes
    (path,) = (tmp_path / "slices").iterdir()
    kept = Slice.load(path)
    assert path.name == f"shown_{task.name}.npz"
    assert (kept.z, kept.reference.sum(), kept.prediction.sum()) == (1, size, 1)
    masks = {path.stem: predictions.load(path) for path in (tmp_path / predictions.FOLDER).iterdir()}
    assert masks.keys() == {"shown", "hidden"} and masks["hidden"][task.name].sum() == 1, "of every case"
