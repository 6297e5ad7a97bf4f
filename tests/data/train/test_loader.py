import threading
import types

import numpy as np
import pytest
import torch

from covidseg.data.train.loader import PatchLoader
from covidseg.data.train.patches import PatchSampler


def cases():
    rng = np.random.default_rng(0)
    foreground = {"lesion": np.array([[3, 3, 3]])}
    return [
        types.SimpleNamespace(
            id=f"c{n}",
            image=rng.integers(-1000, 1000, (12, 12, 12)).astype(np.int16),
            mask=rng.integers(0, 3, (12, 12, 12)).astype(np.uint8),
            foreground=foreground,
        )
        for n in range(4)
    ]


def loader(max_steps=9, threads=2, prefetch=3):
    return PatchLoader(PatchSampler(cases(), ["lesion"], (4, 4, 4), 2, 0.5, seed=0), max_steps, threads, prefetch)


def same(one, other):
    return one["step"] == other["step"] and one["case"] == other["case"] and torch.equal(one["image"], other["image"])


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 5), (4, 50)])
def test_batches_come_in_order_whatever_the_threads(threads, prefetch):
    batches = list(loader(threads=threads, prefetch=prefetch))
    assert [batch["step"] for batch in batches] == list(range(9))
    assert all(same(batch, loader().load(step)) for step, batch in enumerate(batches))
    assert batches[0]["image"].shape == (2, 1, 4, 4, 4)
    assert (batches[0]["image"].dtype, batches[0]["mask"].dtype) == (torch.int16, torch.uint8)


def test_a_state_saved_before_step_k_is_trained_goes_on_with_step_k():
    interrupted, whole = loader(), list(loader())
    for batch in interrupted:
        if batch["step"] == 4:
            state = interrupted.state_dict()
            break
    assert state == {"step": 4}
    resumed = loader()
    iter(resumed)  # Lightning makes an iterator before it restores the state
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 5 and all(map(same, rest, whole[4:]))


def test_the_parts_of_a_step_are_what_further_ranks_would_train_on():
    def sampler(rank, ranks, parts=1):
        return PatchSampler(cases(), ["lesion"], (4, 4, 4), 2, 0.5, seed=0, rank=rank, ranks=ranks, parts=parts)

    alone = list(PatchLoader(sampler(0, 1, parts=3), 2, 2, 3))
    assert [(batch["step"], batch["part"]) for batch in alone] == [
        (step, part) for step in (0, 1) for part in (0, 1, 2)
    ]
    assert all(same(batch, PatchLoader(sampler(batch["part"], 3), 2, 2, 3).load(batch["step"])) for batch in alone)
    resumed = PatchLoader(sampler(0, 1, parts=3), 2, 2, 3)
    resumed.load_state_dict({"step": 1})
    assert all(map(same, list(resumed), alone[3:]))


def patch_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("patches")}


def test_an_iterator_that_is_never_used_starts_no_thread_and_a_broken_off_one_leaves_none():
    before = patch_threads()  # of earlier tests, perhaps still ending
    kept = iter(loader())
    assert patch_threads() <= before
    next(kept)
    started = patch_threads() - before
    assert started
    kept.close()
    for thread in started:
        thread.join(30)
    assert not any(thread.is_alive() for thread in started)


def test_a_fault_in_a_thread_reaches_the_training():
    broken = loader()
    broken.sampler.cases[2] = None
    with pytest.raises(AttributeError):
        list(broken)
