import numpy as np
import pytest
from matplotlib import image as png
from matplotlib.colors import to_hex

from covidseg.evaluation.agreement import Volumes, volume_agreement
from covidseg.evaluation.comparison import RowScores, compare_all
from covidseg.figures import overlays as figures
from covidseg.figures import plots, surfaces
from covidseg.figures.palette import METHOD_COLOURS, REFERENCE_COLOUR
from covidseg.runs.slices import Slice

SPACING = (2.0, 0.5, 1.5)


@pytest.fixture
def kept():
    image = np.full((6, 40, 60), -850, np.int16)
    reference = np.zeros(image.shape, bool)
    reference[2, 10:30, 20:40] = True
    reference[4, 5:35, 20:40] = True
    prediction = np.roll(reference, 4, axis=2)
    image[reference] = 40
    return Slice.cut("p01", "lesion", image, reference, prediction, SPACING)


def colours(figure, tmp_path):
    path = figures.save(figure, tmp_path / "figure.png")
    return png.imread(path)[..., :3]


def has(picture, colour, tolerance=0.06):
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(picture - wanted).max(axis=-1) < tolerance).any())


def test_slice_is_that_of_largest_reference_area(kept):
    assert kept.z == 4
    assert kept.image.shape == (40, 60) and kept.image.dtype == np.int16
    assert kept.reference.sum() == 30 * 20


def test_slice_without_reference_shows_the_prediction():
    image = np.zeros((3, 4, 4), np.int16)
    prediction = np.zeros(image.shape, bool)
    prediction[1, 0, 0] = True
    assert Slice.cut("p", "lung", image, np.zeros_like(prediction), prediction, SPACING).z == 1


def test_slice_survives_the_disk(kept, tmp_path):
    kept.save(tmp_path)
    (path,) = (tmp_path / "slices").iterdir()
    assert path.name == "p01_lesion.npz"
    again = Slice.load(path)
    assert (again.case, again.structure, again.z, again.spacing_yx) == ("p01", "lesion", 4, (0.5, 1.5))
    for name in ("image", "reference", "prediction", "volumes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))


def test_coarse_volumes_keep_the_volume():
    z, y, x = np.ogrid[:40, :300, :300]
    mask = ((z - 20) * 2.5) ** 2 + ((y - 150) * 1.5) ** 2 + ((x - 141) * 1.5) ** 2 < 35**2
    coarse = Slice.cut("p", "lung", mask.astype(np.int16), mask, mask, (2.5, 1.5, 1.5))
    assert max(coarse.volumes.shape) < 160
    volume = coarse.volumes[0].sum() * np.prod(coarse.volume_spacing_zyx)
    assert volume == pytest.approx(mask.sum() * 2.5 * 1.5 * 1.5, rel=0.05)


def test_contours_are_drawn_in_both_colours_at_the_right_aspect(kept, tmp_path):
    figure = figures.contour_figure({"UNet4": kept, "FV": kept}, {"UNet4": 0.5, "FV": None})
    colours(figure, tmp_path)
    axes = figure.axes[0]
    drawn = [to_hex(contour.get_edgecolor()[0]) for contour in axes.collections]
    assert drawn == [figures.PREDICTION_COLOUR, REFERENCE_COLOUR]
    assert axes.get_title() == "UNet4  0.500" and figure.axes[1].get_title() == "FV"
    assert axes.get_aspect() == 1
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left, bottom - top) == (60 * 1.5, 40 * 0.5)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # anterior up


def test_contour_lies_on_the_mask_edge(kept):
    figure = figures.contour_figure({"UNet4": kept}, {})
    contour = figure.axes[0].collections[-1].get_paths()[0].vertices  # the reference's, drawn last
    np.testing.assert_allclose(contour.min(axis=0), (20 * 1.5, 5 * 0.5))
    np.testing.assert_allclose(contour.max(axis=0), (40 * 1.5, 35 * 0.5))


def test_contours_of_an_empty_prediction(kept, tmp_path):
    nothing = Slice.cut("p01", "lesion", np.zeros((2, 9, 9), np.int16), *np.zeros((2, 2, 9, 9), bool), SPACING)
    figure = figures.contour_figure({"x": nothing}, {})
    assert not figure.axes[0].collections
    colours(figure, tmp_path)


def test_scores_and_differences_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    rows = {name: dict(enumerate(rng.uniform(0.4, 0.9, 8))) for name in ("a", "b", "c")}
    figure = plots.scores_figure({name: list(own.values()) for name, own in rows.items()}, {"a": 0.7}, "Dice")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a  (n=8)", "b  (n=8)", "c  (n=8)"]
    assert has(colours(figure, tmp_path), METHOD_COLOURS[0])
    scored = {name: RowScores({0: own}) for name, own in rows.items()}
    found = compare_all({"dice": scored}, [("b", "a"), ("c", "a")], {case: case for case in range(8)})
    figure = plots.differences_figure(found, {"a": "UNet4"}, "Dice")
    assert "UNet4" in figure.axes[0].get_xlabel()
    assert has(colours(figure, tmp_path), METHOD_COLOURS[0])
    others = compare_all({"dice": scored}, [("b", "a"), ("c", "b")], {case: case for case in range(8)})
    names = [label.get_text() for label in plots.differences_figure(others, {}, "Dice").axes[0].get_yticklabels()]
    assert names == ["b - a  (n=8)", "c - b  (n=8)"]
    one = {name: RowScores({0: {"p": value}}) for name, value in (("a", 0.5), ("b", 0.6))}
    single = compare_all({"dice": one}, [("b", "a")], {"p": "p"})  # one case: no interval, still a point
    assert has(colours(plots.differences_figure(single, {}, "Dice"), tmp_path), METHOD_COLOURS[0])


def test_volumes_against_each_other_are_drawn_with_bias_and_limits(tmp_path):
    predicted, reference = (110.0, 190.0, 330.0), (100.0, 200.0, 300.0)
    shown = [
        Volumes(name, "all", volume_agreement(*pair), *pair)
        for name, pair in (("a", (predicted, reference)), ("b", (predicted[:1], reference[:1])))
    ]
    figure = plots.agreement_figure(shown, {"a": "UNet4"}, "lesion")
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["UNet4", "b"]
    assert first.lines[0].get_ydata().tolist() == [10, -10, 30]
    assert first.lines[0].get_xdata().tolist() == [105, 195, 315]
    heights = [line.get_ydata()[0] for line in first.lines[1:4]]
    assert heights == [shown[0].agreement.bias, shown[0].agreement.low, shown[0].agreement.high]
    assert len(second.lines) == 3  # points, bias, zero: one case has no limits
    assert has(colours(figure, tmp_path), REFERENCE_COLOUR)


def test_curves_skip_what_was_not_logged(tmp_path):
    nan = float("nan")
    curves = {
        "a": [{"step": [0, 1, 2], "train/loss": [1, 0.5, 0.4], "val/dice": [nan, 0.2, nan]}],
        "b": [{"step": [0]}],
    }
    figure = plots.curves_figure(curves, ["train/loss", "val/dice"])
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert list(figure.axes[1].lines[0].get_xdata()) == [1]
    colours(figure, tmp_path)


@pytest.fixture
def ball():
    z, y, x = np.ogrid[:30, :30, :30]
    lung = (z - 15) ** 2 + (y - 15) ** 2 + (x - 15) ** 2 < 144
    lesion = (z - 20) ** 2 + (y - 22) ** 2 + (x - 20) ** 2 < 9
    return {"lesion": lesion, "lung": lung}


def test_ray_cast_shows_the_lesion_on_the_right_side(ball):
    for view in surfaces.VIEWS:
        picture = surfaces.render(ball, (2.0, 2.0, 2.0), view)
        assert picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1
        redness = picture[..., 0] - picture[..., 1]
        row, column = np.unravel_index(redness.argmax(), redness.shape)
        assert row < picture.shape[0] / 2  # z = 20 of 30 is above the middle, and the head is up
        assert column > picture.shape[1] / 2  # left of the patient, and posterior: both to the viewer's right


def test_ray_cast_from_the_left_sees_the_left_face():
    z, _, x = np.ogrid[:40, :40, :40]
    roof = np.zeros((40, 40, 40), bool)
    roof[5:35, 5:35, 5:30] = (x > 5 + abs(z - 20))[5:35, :, 5:30]  # a flat face to the left, a ridge to the right
    picture = surfaces.render({"lesion": roof}, (2.0, 2.0, 2.0), surfaces.VIEWS[1])
    assert picture[17:27, 12:32].std(axis=(0, 1)).max() < 1e-3


def test_a_surface_of_nothing_is_white():
    picture = surfaces.render({"lesion": np.zeros((8, 8, 8), bool)}, (1.0, 1.0, 1.0), surfaces.VIEWS[0])
    assert (picture == 1).all()


def test_window_strip_shows_one_slice_at_several_levels_and_widths(tmp_path):
    """Grey is (HU - level) / width + 1/2, cut off at black and white, whatever else the figure holds."""
    plane = np.linspace(-1000, 400, 40 * 60).reshape(40, 60)
    figure = figures.window_strip(plane, (1.0, 0.5), figures.WINDOWS)
    assert [axes.get_title() for axes in figure.axes] == [
        "lung\nL -600, W 1500", "ground glass\nL -500, W 800", "mediastinum\nL 40, W 400", "training\nL -500, W 1500",
    ]  # fmt: skip
    for axes, (level, width) in zip(figure.axes, figures.WINDOWS.values(), strict=True):
        (shown,) = axes.images
        grey = shown.cmap(shown.norm(plane))[..., 0]
        assert np.abs(grey - np.clip((plane - level) / width + 0.5, 0, 1)).max() < 1 / 255
        assert axes.get_aspect() == 2.0
    assert png.imread(figures.save(figure, tmp_path / "strip.png")).shape[1] > 4 * 300


def test_paired_lines_join_the_scores_of_a_case(tmp_path):
    scores = {"UNet4": {"a": 0.2, "b": 0.6}, "FV": {"a": 0.4, "b": 0.5, "c": 0.9}}
    figure = plots.paired_figure(scores, "lesion Dice")
    (axes,) = figure.axes
    lines = [line.get_ydata().tolist() for line in axes.lines]
    assert lines[:2] == [[0.2, 0.4], [0.6, 0.5]] and np.isnan(lines[2][0]) and lines[2][1] == 0.9
    assert lines[3] == pytest.approx([0.4, 0.6])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["UNet4", "FV"]
    colours(figure, tmp_path)


@pytest.mark.parametrize(("cost", "scale"), [(5e10, "linear"), (5e12, "log")])
def test_costs_are_points_as_large_as_the_networks(cost, scale, tmp_path):
    figure = plots.costs_figure({"small": (1e10, 1e6, 0.5, 0.4, 0.6), "large": (cost, 4e6, 0.7, None, None)}, "Dice")
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    at = [points.get_offsets()[0].tolist() for points in axes.collections]
    assert at == [[10, 0.5], [cost / 1e9, 0.7]]
    small, large = (points.get_sizes()[0] for points in axes.collections)
    assert large > 2 * small and [list(line.get_ydata()) for line in axes.lines] == [[0.4, 0.6]]
    assert has(colours(figure, tmp_path), METHOD_COLOURS[1])


def test_a_figure_is_kept_as_a_picture_and_for_print(kept, tmp_path):
    figure = figures.contour_figure({"UNet4": kept}, {})
    assert figures.save(figure, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    path = figures.save(figure, tmp_path / "a.pdf")
    assert path.read_bytes()[:5] == b"%PDF-"
    assert b"CreationDate" not in path.with_suffix(".pdf").read_bytes(), "the same figure is the same file"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_surfaces_fill_their_panels():
    """Two balls in a corner of a large volume: the panels show them and not the emptiness beside."""
    z, y, x = np.ogrid[:40, :60, :60]
    ball = (z - 8) ** 2 + (y - 10) ** 2 + (x - 10) ** 2 < 36
    lesion = Slice.cut("p", "lesion", np.zeros(ball.shape, np.int16), ball, np.roll(ball, 6, axis=2), (2.0, 2.0, 2.0))
    figure = figures.surface_figure(lesion, None, "FV")
    for axes in figure.axes:
        picture = axes.images[0].get_array()
        drawn = (np.asarray(picture) < 1).any(axis=-1)
        assert drawn.any() and max(picture.shape[:2]) < 30
    assert len({axes.images[0].get_array().shape for axes in figure.axes[::2]}) == 1, "a column is one view"
