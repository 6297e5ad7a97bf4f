"""How the time of a run is told."""

import pytest

from covidseg.runs.timing import PARTS, advice, in_short, told


def seconds(**parts):
    return {**dict.fromkeys(PARTS, 0.0), **parts}


def test_the_shares_in_a_line():
    line = told(seconds(starting=10, step=80, loader=0.2, evaluating=9.8))
    assert line == "step 80%, starting 10%, evaluating 10%"
    assert told(seconds()) == in_short(seconds()) == in_short(None) == ""


@pytest.mark.parametrize(("part", "said"), [
    ("loader", "training.loader_threads"), ("copy", "training.batch_size"),
    ("validation", "training.validate_every"), ("checkpoint", "training.checkpoint_every"),
])  # fmt: skip
def test_what_takes_long_says_what_to_change(part, said):
    assert [said in word for word in advice(seconds(step=50, starting=900, **{part: 50}))] == [True]
    assert in_short(seconds(step=50, **{part: 50})).startswith("step 50%; ")
    assert advice(seconds(step=99, **{part: 1})) == advice({}) == []
