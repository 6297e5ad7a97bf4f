import json

import numpy as np
import pytest
from scipy import ndimage

from covidseg import load
from covidseg.data.store import PreparedDataset
from covidseg.inference import postprocessing
from covidseg.inference.postprocessing import FILE, SMALLEST_ML, THRESHOLDS, Postprocessing, choose
from covidseg.system.errors import BadInput

SPACING = (5.0, 2.0, 2.0)  # a voxel is .02 ml


@pytest.fixture
def probability():
    """Smooth blobs of many sizes."""
    noise = np.random.default_rng(0).standard_normal((24, 40, 36))
    smooth = ndimage.gaussian_filter(noise, 2)
    return (1 / (1 + np.exp(-smooth / smooth.std() * 2))).astype(np.float32)


def test_the_default_is_the_likeliest_class(probability):
    assert np.array_equal(Postprocessing().mask(probability, SPACING), probability > 0.5)


def test_pieces_are_dropped_by_their_volume_and_touch_over_corners():
    probability = np.zeros((6, 12, 12), np.float32)
    probability[0, 0, 0] = probability[1, 1, 1] = 0.9  # two voxels that touch at a corner: .04 ml
    probability[4, 4:8, 4:8] = 0.9  # .32 ml
    probability[0, 10, 10] = 0.9  # .02 ml
    kept = {
        smallest: int(Postprocessing(0.5, smallest).mask(probability, SPACING).sum()) for smallest in (0, 0.03, 0.3, 1)
    }
    assert kept == {0: 19, 0.03: 18, 0.3: 16, 1: 0}
    assert not Postprocessing(0.95, 0.1).mask(probability, SPACING).any()


def test_what_a_setting_is_worth_is_the_dice_of_its_mask(probability):
    """Each setting once more by the mask that it would make, and Dice by its formula."""
    reference = np.roll(probability, 3, axis=2) > 0.6
    found = dict(postprocessing._dice_of_settings(probability, reference, SPACING))
    assert len(found) == len(THRESHOLDS) * len(SMALLEST_ML)
    for setting, dice in found.items():
        mask = setting.mask(probability, SPACING)
        total = mask.sum() + reference.sum()
        assert dice == pytest.approx(2 * (mask & reference).sum() / total if total else 1.0)
    assert len(set(found.values())) > 10


def test_an_empty_case_left_empty_is_right(probability):
    found = dict(postprocessing._dice_of_settings(probability * 0.6, np.zeros_like(probability, bool), SPACING))
    assert found[Postprocessing(0.7, 0.0)] == 1.0 and found[Postprocessing(0.2, 0.0)] == 0.0


@pytest.fixture
def segmenter(make_run):
    return load(make_run())


class Known:
    """A segmenter that sees in each case its lesion, too small by a threshold of .5, and a speck beside it."""

    name, checkpoint_sha256 = "table/row/lesion/seed0", "0" * 64

    def __init__(self, segmenter, cases):
        self.task, self.inferer, self.cases = (
            segmenter.task,
            segmenter.inferer,
            {id(case.image): case for case in cases},
        )

    def scores(self, image):
        lesion = self.cases[id(image)].mask == 2
        scores = np.zeros((2, *image.shape), np.float32)
        scores[1] = np.where(lesion, -0.3, -8.0)
        scores[1, 0, 0, 0] = 8.0
        return scores


def test_the_best_setting_is_found_and_kept_with_the_run(segmenter, prepared, tmp_path):
    cases = [case for case in PreparedDataset.open(prepared).cases.values() if "lesion" in case.annotated]
    known = Known(segmenter, cases)
    choice = choose(known, cases)
    assert choice.postprocessing.threshold == 0.4, "the probability of a lesion is .43"
    assert choice.after > choice.before and choice.cases == tuple(case.id for case in cases)
    choice.save(tmp_path, known, "phantom-0")
    settings = segmenter.inferer.settings
    assert postprocessing.chosen_for(tmp_path, "run", "0" * 64, settings) == choice.postprocessing
    for digest, other, wrong in (
        ("1" * 64, settings, "chosen for other weights"),
        ("0" * 64, {**settings, "overlap": 0.5}, "chosen for another sliding window"),
    ):
        with pytest.raises(BadInput, match=wrong):
            postprocessing.chosen_for(tmp_path, "run", digest, other)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"threshold": "high"}, "threshold is"),
        ({"threshold": 1.5}, "that cannot be"),
        ({"smallest_ml": -1}, "that cannot be"),
        ({"format": 2}, "format is none of 1"),
        ({"cases": None}, "cases is"),
    ],
)
def test_a_file_that_no_choice_wrote_is_refused(segmenter, prepared, tmp_path, change, wrong):
    cases = [case for case in PreparedDataset.open(prepared).cases.values() if "lesion" in case.annotated][:1]
    known = Known(segmenter, cases)
    path = choose(known, cases).save(tmp_path, known, "phantom-0")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=wrong):
        postprocessing.chosen_for(tmp_path, "run", "0" * 64, segmenter.inferer.settings)
    path.write_text("{")
    with pytest.raises(BadInput, match=f"{FILE}: is damaged"):
        postprocessing.chosen_for(tmp_path, "run", "0" * 64, segmenter.inferer.settings)


def test_a_run_without_a_choice_names_the_command_that_makes_one(make_run):
    with pytest.raises(
        BadInput, match=r"has no postprocessing chosen -> python src/evaluate.py run=.* choose_postproc"
    ):
        load(make_run(), postprocess=True)


def test_a_task_of_several_structures_has_no_one_threshold(make_run, prepared):
    with pytest.raises(BadInput, match="task joint has 2 structures"):
        choose(load(make_run("joint")), PreparedDataset.open(prepared).cases.values())
