"""Contact sheets: every case, in planes as radiologists look at them, cut where its lesion is."""

import numpy as np
import pytest
from matplotlib.image import imread

from covidseg.data.store import PreparedDataset
from covidseg.figures import sheets


def test_planes_cut_the_lesion_and_lie_as_radiologists_look_at_them():
    image = np.zeros((6, 8, 10), np.int16)
    mask = np.zeros(image.shape, np.uint8)
    mask[1:5, 2:6, 1:9] = 1
    mask[3, 4, 7] = mask[3, 4, 6] = mask[3, 3, 7] = 2
    image[5] = 500  # the head end
    image[:, 0] = 300  # the front
    (axial, axial_mask), (coronal, coronal_mask), (sagittal, sagittal_mask) = sheets.planes(image, mask)
    assert np.array_equal(axial_mask, mask[3]) and np.array_equal(coronal_mask, mask[::-1, 4])
    assert np.array_equal(sagittal_mask, mask[::-1, :, 7])
    assert (axial[0] == 300).all() and (coronal[0] == 500).all()  # front, and head, are at the top
    assert (sagittal[1:, 0] == 300).all()  # the front is on the left


@pytest.mark.parametrize("labels", [(), (1,), (2,)])
def test_planes_of_a_case_without_some_structure(labels):
    mask = np.zeros((4, 5, 6), np.uint8)
    for label in labels:
        mask[1, 2, 3] = label
    found = list(sheets.planes(np.zeros(mask.shape, np.int16), mask))
    assert [plane.shape for plane, _ in found] == [(5, 6), (4, 6), (4, 5)]
    assert all(part.any() == bool(labels) for _, part in found)


def test_every_case_is_on_a_sheet_and_an_older_sheet_goes(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "_DOWN", 1)
    cases = list(PreparedDataset.open(prepared).cases.values())
    (tmp_path / "contact-9.png").write_bytes(b"old")
    made = sheets.contact_sheets(cases, (-1250, 250), tmp_path)
    assert [path.name for path in made] == [f"contact-{n}.png" for n in range(1, -(-len(cases) // 3) + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in made)
    picture = imread(made[0])[..., :3]
    red = (picture[..., 0] > 0.8) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.4)
    assert red.sum() > 50  # contours of lesions
