import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidseg.data.train.patches import AIR_HU, PatchSampler, crop
from covidseg.system.errors import BadInput


def make_case(name, shape, lesion=((2, 3, 4),), seed=0):
    mask = np.zeros(shape, np.uint8)
    for voxel in lesion:
        mask[voxel] = 2
    image = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    foreground = {"lesion": np.array(lesion, np.int32).reshape(-1, 3), "lung": np.zeros((0, 3), np.int32)}
    return types.SimpleNamespace(id=name, image=image, mask=mask, foreground=foreground)


def sampler(cases, size=(4, 4, 4), batch=2, probability=0.0, **options):
    return PatchSampler(cases, ["lesion"], size, batch, probability, **{"seed": 0, **options})


CASES = [make_case(f"c{n}", (9 + n, 10, 11), seed=n) for n in range(5)]


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.lists(st.integers(-6, 8), min_size=3, max_size=3))
def test_crop_equals_slicing_a_generously_padded_volume(size, start):
    volume = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    padded = np.pad(volume, 20, constant_values=-7)
    expected = padded[tuple(slice(20 + a, 20 + a + n) for a, n in zip(start, size, strict=True))]
    out = np.full(size, 99, np.int16)
    crop(volume, start, out, -7)
    np.testing.assert_array_equal(out, expected)


def test_a_batch_is_a_pure_function_of_its_step():
    one, other = sampler(CASES), sampler(CASES)
    for step in (7, 3, 7, 0):
        assert [one.patch(step, slot) for slot in (0, 1)] == [other.patch(step, slot) for slot in (0, 1)]
    assert one.patch(3, 0) != one.patch(3, 1)
    assert [sampler(CASES, seed=1).patch(n, 0) for n in range(9)] != [one.patch(n, 0) for n in range(9)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_case_comes_once_before_any_comes_again(ranks):
    samplers = [sampler(CASES, rank=rank, ranks=ranks) for rank in range(ranks)]
    drawn = [part.patch(step, slot).case for step in range(20) for part in samplers for slot in (0, 1)]
    for turn in range(len(drawn) // len(CASES)):
        assert sorted(drawn[turn * 5 : turn * 5 + 5]) == [0, 1, 2, 3, 4]
    assert drawn[:5] != drawn[5:10]


def test_ranks_draw_different_patches_of_one_case():
    parts = [sampler(CASES[:1], rank=rank, ranks=2) for rank in (0, 1)]
    assert [parts[0].patch(step, 0) for step in range(5)] != [parts[1].patch(step, 0) for step in range(5)]


def test_a_foreground_patch_is_centred_where_the_case_allows_it():
    case = make_case("c", (40, 40, 40), lesion=((20, 1, 39),))
    assert sampler([case], size=(8, 8, 8), probability=1.0).patch(0, 0).start_zyx == (16, 0, 32)


def test_uniform_crops_reach_every_position_equally_often():
    case = make_case("c", (6, 6, 4), lesion=())
    starts = [sampler([case], seed=seed).patch(step, 0).start_zyx for seed in range(40) for step in range(30)]
    counts = np.zeros((3, 3), int)
    for z, y, x in starts:
        assert x == 0
        counts[z, y] += 1
    assert counts.sum() == 1200 and abs(counts - 1200 / 9).max() < 50  # four standard deviations


def test_foreground_patches_hold_the_lesion_and_their_share_is_the_probability():
    case = make_case("c", (40, 40, 40), lesion=((1, 20, 39), (30, 2, 5)))
    draw = sampler([case], size=(8, 8, 8), probability=0.3)
    image, mask = np.empty((2, 1, 8, 8, 8), np.int16), np.empty((2, 1, 8, 8, 8), np.uint8)
    hits = 0
    for step in range(300):
        draw.batch(step, image, mask)
        hits += sum(part.any() for part in mask)
    assert abs(hits / 600 - 0.3) < 0.07  # a uniform patch hits one of the two voxels in about 1 %


def test_batch_holds_the_voxels_of_the_named_cases():
    draw, by_name = sampler(CASES), {case.id: case for case in CASES}
    image, mask = np.empty((2, 1, 4, 4, 4), np.int16), np.empty((2, 1, 4, 4, 4), np.uint8)
    ids = draw.batch(11, image, mask)
    for slot, name in enumerate(ids):
        z, y, x = draw.patch(11, slot).start_zyx
        window = np.s_[z : z + 4, y : y + 4, x : x + 4]
        np.testing.assert_array_equal(image[slot, 0], by_name[name].image[window])
        np.testing.assert_array_equal(mask[slot, 0], by_name[name].mask[window])


def test_cases_smaller_than_the_patch_are_padded_with_air_and_background():
    case = make_case("small", (3, 9, 2), lesion=((1, 4, 1),))
    draw = sampler([case], size=(8, 8, 8), probability=1.0)
    image, mask = np.empty((2, 1, 8, 8, 8), np.int16), np.empty((2, 1, 8, 8, 8), np.uint8)
    for step in range(10):
        draw.batch(step, image, mask)
        for slot in (0, 1):
            assert (image[slot] == AIR_HU).sum() >= 8**3 - 3 * 8 * 2
            assert (mask[slot] == 2).sum() == 1


def test_cases_without_foreground_give_uniform_crops():
    case = make_case("healthy", (9, 9, 9), lesion=())
    assert len({sampler([case], probability=1.0).patch(step, 0).start_zyx for step in range(20)}) > 10


def test_refusals_name_what_is_wrong():
    with pytest.raises(BadInput, match="holds no case"):
        sampler([])
    with pytest.raises(BadInput, match=r"foreground_probability=1\.5"):
        sampler(CASES, probability=1.5)
