"""Phantoms: determinism, anatomy that could be a patient's, lesions no threshold finds."""

import csv
import hashlib
import time

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from scipy import ndimage

from covidseg.config.paths import CONF
from covidseg.data.prepare.run import prepare
from covidseg.phantom import fields, make_phantom, write_phantoms
from covidseg.phantom.trees import MURRAY, grow
from covidseg.scans.read import read_scan
from covidseg.system.errors import BadInput

TINY = (36, 56, 56)
SHARES = {"thin": False, "lesion_free": 0.25, "second_scans": 0.34, "other_site": 0.25}


@pytest.fixture(scope="module")
def phantoms():
    """Eight patients."""
    return [make_phantom(5, TINY, patient=patient) for patient in range(8)]


def digest(phantom):
    return hashlib.sha256(phantom.hu.tobytes() + phantom.labels.tobytes()).hexdigest()


def ml(mask, phantom):
    return mask.sum() * np.prod(phantom.spacing_zyx) / 1000


def test_same_numbers_same_voxels_other_numbers_other_voxels(phantoms):
    assert digest(make_phantom(5, TINY, patient=1)) == digest(phantoms[1])
    others = [make_phantom(6, TINY, patient=1), make_phantom(5, TINY, patient=1, scan=1), *phantoms]
    assert len({digest(other) for other in others}) == len(others)


@pytest.mark.parametrize("voxels", [1 << 11, 1 << 13])
def test_the_parts_a_phantom_is_computed_in_do_not_show(voxels, monkeypatch):
    options = {"patient": 3, "scan": 1, "other_site": True}
    monkeypatch.setattr(fields, "SLAB_VOXELS", 1 << 40)
    whole = make_phantom(5, (40, 60, 64), **options)
    monkeypatch.setattr(fields, "SLAB_VOXELS", voxels)  # parts of less than a slice, and of two
    parts = make_phantom(5, (40, 60, 64), **options)
    np.testing.assert_array_equal(parts.hu, whole.hu)
    np.testing.assert_array_equal(parts.labels, whole.labels)


def test_second_scan_is_the_same_body_with_other_lesions(phantoms):
    first, second = phantoms[1], make_phantom(5, TINY, patient=1, scan=1, lesions=False)
    assert not (second.labels == 2).any()
    lungs = [ml(phantom.labels > 0, phantom) for phantom in (first, second)]
    assert abs(lungs[0] - lungs[1]) < 0.1 * max(lungs)


def test_it_is_a_chest_ct(phantoms):
    for phantom in phantoms:
        assert phantom.hu.shape == phantom.labels.shape == TINY
        assert phantom.hu.dtype == np.int16 and phantom.labels.dtype == np.uint8
        lung = phantom.labels == 1
        assert 2500 < ml(phantom.labels > 0, phantom) < 9000  # ml; adults at full inspiration
        assert -900 < np.median(phantom.hu[lung]) < -760
        assert np.percentile(phantom.hu[lung], 99.5) > -450  # vessels
        outside = phantom.hu[phantom.labels == 0]
        air = outside[(outside < -900) & (outside > -1024)]  # -1024 also stands outside a round field of view
        assert abs(np.median(air) + 1000) < 10
        soft = outside[(outside > -150) & (outside < 120)]
        fat, muscle = (np.mean((soft > low) & (soft < low + 60)) for low in (-130, 20))
        assert fat > 0.15 and muscle > 0.15  # two peaks, as in people
        assert 0.005 < np.mean(outside > 250) < 0.15  # bone


def test_two_lungs_of_like_size_left_and_right(phantoms):
    for phantom in phantoms:
        parts, count = ndimage.label(phantom.labels > 0)
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        assert count >= 2 and sizes[1] > 0.4 * sizes[0]
        middles = ndimage.center_of_mass(parts > 0, parts, np.argsort(np.bincount(parts.ravel())[1:])[-2:] + 1)
        assert sorted(x < TINY[2] / 2 for _, _, x in middles) == [False, True]


def test_lesions_prefer_the_back_and_the_chest_wall(phantoms):
    further_back, nearer = [], []
    for phantom in phantoms:
        lung, sick = phantom.labels > 0, phantom.labels == 2
        chest = ndimage.binary_closing(lung, np.ones((1, 1, 31)))  # with the mediastinum, whose rim does not count
        wall = ndimage.distance_transform_edt(chest, sampling=phantom.spacing_zyx)
        y = np.broadcast_to(np.arange(TINY[1])[None, :, None], TINY) * phantom.spacing_zyx[1]
        further_back.append(y[sick].mean() - y[lung].mean())
        nearer.append((wall[sick] < 20).mean() / (wall[lung] < 20).mean())
    assert np.mean(further_back) > 10 and np.mean(nearer) > 1.2


def test_severity_varies_and_some_lesions_are_as_dense_as_the_wall(phantoms):
    shares = [(phantom.labels == 2).sum() / (phantom.labels > 0).sum() for phantom in phantoms]
    dense = [np.mean(phantom.hu[phantom.labels == 2] > -50) for phantom in phantoms]
    assert min(shares) < 0.05 and 0.1 < max(shares) < 0.6
    assert max(dense) > 0.08 and min(dense) < 0.02


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_no_threshold_solves_it(phantoms):
    """Not even the best pair of thresholds for these very scans, inside the true lungs."""
    truth = [phantom.labels == 2 for phantom in phantoms]
    ranges = [(low, high) for low in range(-800, -200, 100) for high in (-300, 0, 100, 3000) if high > low]
    whole = max(
        np.mean([dice((p.hu > a) & (p.hu < b), t) for p, t in zip(phantoms, truth, strict=True)]) for a, b in ranges
    )
    inside = max(
        np.mean([dice((p.hu > a) & (p.hu < b) & (p.labels > 0), t) for p, t in zip(phantoms, truth, strict=True)])
        for a, b in ranges
    )
    assert whole < 0.35 and inside < 0.65


def test_thin_and_thick_slices():
    scans = [make_phantom(2, (32, 40, 40), patient=patient, thin=True) for patient in range(8)]
    thickness = [scan.spacing_zyx[0] for scan in scans]
    assert 0.6 <= min(thickness) < 1.5 and 4 < max(thickness) <= 8
    for scan in scans:
        assert scan.hu.shape[0] <= 32
        assert (scan.labels == 2).any()  # a slab shows a lesion
        height = scan.hu.shape[0] * scan.spacing_zyx[0]
        assert height > 200 or scan.hu.shape[0] == 32  # the whole lungs, or a slab as large as was asked for


def test_other_site_is_noisier(phantoms):
    def noise(phantom):
        """Difference of neighbouring slices in the liver and muscle, away from borders."""
        soft = ndimage.gaussian_filter(phantom.hu.astype(float), 1)
        soft = ndimage.binary_erosion((soft > 20) & (soft < 200))
        return np.median(np.abs(np.diff(phantom.hu.astype(float), axis=0)[soft[1:] & soft[:-1]]))

    others = [noise(make_phantom(5, TINY, patient=patient, other_site=True)) for patient in range(2)]
    assert np.mean(others) > 1.2 * np.mean([noise(phantom) for phantom in phantoms[:2]])


def test_branches_keep_murrays_law(rng):
    tree = grow(rng, np.zeros(3), rng.uniform(-50, 50, (64, 3)), 0.75)
    starts = {tuple(start): radius for start, radius in zip(tree.start, tree.radius, strict=True)}
    assert len(tree.radius) == 127 and len(starts) == 64  # a binary tree of 64 twigs
    for end, radius in zip(tree.end, tree.radius, strict=True):
        children = tree.radius[(tree.start == end).all(axis=1)]
        if len(children):
            assert radius**MURRAY == pytest.approx((children**MURRAY).sum())


def test_folder_of_phantoms_passes_the_gate_and_is_continued_after_a_kill(tmp_path):
    write_phantoms(tmp_path / "one", 5, (34, 48, 48), 1, workers=0, **SHARES)
    image = read_scan(tmp_path / "one/images/phantom_000.nii.gz")
    assert image.geometry.shape_zyx == (34, 48, 48)
    rows = list(csv.DictReader((tmp_path / "one/cases.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == [f"phantom_{k:03d}" for k in range(5)]
    patients = [row["patient"] for row in rows]
    assert len(set(patients)) == 4 and {row["site"] for row in rows} == {"A", "B"}
    empty = [
        row["case"]
        for row in rows
        if not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"one/lesions/{row['case']}.nii.gz"))).any()
    ]
    assert len({patients[int(case[-3:])] for case in empty}) == 1
    (tmp_path / "one/images/phantom_002.nii.gz").unlink()
    (tmp_path / "one/cases.csv").unlink()
    write_phantoms(tmp_path / "one", 5, (34, 48, 48), 1, workers=0, **SHARES)
    write_phantoms(tmp_path / "two", 5, (34, 48, 48), 1, workers=0, **SHARES)
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_data_phantom_goes_the_way_of_any_folder(tmp_path):
    small = ["data.source.count=5", "data.source.shape_zyx=[34,48,48]", "data.spacing_zyx=[9,8,8]", "data.workers=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["data=phantom", f"paths.data={tmp_path}", *small])
    dataset = prepare(cfg.data, cfg.paths)
    split = dataset.split()
    assert {dataset.cases[case].site for case in split.external} == {"B"}
    assert all(dataset.cases[case].site == "A" for case in (*split.train, *split.validation, *split.test))
    assert len(dataset.cases) == 5 and split.train and split.test
    started = time.monotonic()
    assert prepare(cfg.data, cfg.paths).folder == dataset.folder
    assert time.monotonic() - started < 2


def test_voxels_that_no_ct_has_are_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(BadInput, match=r"data\.source\.shape_zyx=\[16, 48, 48\].*at least"):
        write_phantoms(tmp_path / "x", 1, (16, 48, 48), 1, workers=0, **SHARES)
    assert not (tmp_path / "x").exists()
