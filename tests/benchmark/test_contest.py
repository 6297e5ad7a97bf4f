"""How contenders are timed and told, with work that takes as long as the test says."""

import time

import pytest

from covidseg.benchmark.contest import (
    OTHER_OF_OURS,
    OURS,
    TUNED,
    USUAL,
    Contender,
    Contest,
    Outcome,
    compete,
    markdown,
    verdict,
)


def busy(seconds, calls=None, name=""):
    """Work that computes for so long."""

    def work():
        if calls is not None:
            calls.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return name

    return work


def ways(calls):
    return [
        Contender("slow", USUAL, lambda: busy(0.06, calls, "slow")),
        Contender("mine", OURS, lambda: busy(0.02, calls, "mine")),
        Contender("tuned", TUNED, lambda: busy(0.04, calls, "tuned")),
    ]


def test_each_meets_each_in_every_round_and_who_comes_first_changes():
    calls = []
    outcomes, told = compete(Contest("work", ways(calls), units=2, rounds=3, check=lambda found: str(sorted(found))))
    assert told == "['mine', 'slow', 'tuned']"  # what each gave, before anything was timed
    assert calls[:3] == ["mine", "slow", "tuned"]
    assert [calls[3 + 3 * turn] for turn in range(3)] == ["mine", "slow", "tuned"]
    mine, slow, tuned = outcomes
    assert mine.ratio == [1, 1, 1] and len(slow.cpu) == 3
    assert slow.ratio[0] == pytest.approx(3, rel=0.4) and tuned.ratio[0] == pytest.approx(2, rel=0.4)
    assert mine.cpu[0] == pytest.approx(0.01, rel=0.5)  # of one unit


def test_a_check_that_fails_ends_the_contest_before_it_is_timed():
    calls = []

    def check(found):
        raise AssertionError("they differ")

    with pytest.raises(AssertionError, match="they differ"):
        compete(Contest("work", ways(calls), check=check))
    assert len(calls) == 3


def test_a_peer_that_is_not_installed_is_told_and_left_out():
    def absent():
        import a_peer_that_nobody_has

        return a_peer_that_nobody_has

    outcomes, _ = compete(Contest("work", [*ways([]), Contender("gone", USUAL, absent)], rounds=1))
    text = markdown("work", outcomes, "")
    assert "not installed (a_peer_that_nobody_has): pip install -e '.[bench]'" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:] == [
        "mine", "tuned", "slow", "gone",
    ]  # fmt: skip


@pytest.mark.parametrize(("ratios", "said"), [
    ([("MONAI", USUAL, 3.0), ("tuned", TUNED, 2.0)], "Ours wins: 2.00 times less CPU time than the next, tuned."),
    ([("MONAI", USUAL, 3.0), ("tuned", TUNED, 1.05)], "A tie with tuned."),
    ([("MONAI", USUAL, 0.95)], "A tie with MONAI."),
    ([("MONAI", USUAL, 0.5)], "**MONAI wins**: ours takes 2.00 times its CPU time."),
    ([("fast", OTHER_OF_OURS, 0.1)], "Nobody to compare with."),
])  # fmt: skip
def test_who_wins(ratios, said):
    outcomes = [Outcome("mine", OURS, [1], [1], [1]), *(Outcome(n, kind, [r], [r], [r]) for n, kind, r in ratios)]
    assert verdict(outcomes) == said
