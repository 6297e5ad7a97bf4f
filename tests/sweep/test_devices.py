"""Which devices GPUS= and CUDA_VISIBLE_DEVICES mean (K11)."""

import pytest

from covidseg.sweep import pool
from covidseg.sweep.pool import find_devices
from covidseg.system.errors import BadInput


@pytest.fixture
def visible(monkeypatch, tmp_path):
    """`visible("4,5")` sets CUDA_VISIBLE_DEVICES; without it there are six GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 6)
    monkeypatch.setattr(pool, "_DRIVER_LIST", tmp_path)
    for number in range(6):
        (tmp_path / f"0000:{number:02d}:00.0").mkdir()
    return lambda value: monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)


@pytest.mark.parametrize(
    "asked, found",
    [
        ("0-5", "012345"), ("0,2-4", "0234"), (" 1, 3 ", "13"), (2, "2"), ([0, 1], "01"), ("05", "5"),
        ("all", "012345"), ("auto", "012345"), ("", "012345"), (None, "012345"),
    ],
)  # fmt: skip
def test_ranges_are_ranges_and_all_is_all(visible, asked, found):
    assert find_devices(asked, "auto", on_cpu=False) == (list(found), True)


@pytest.mark.parametrize("asked", ["0,0", "0-2,1"])
def test_a_second_mention_is_refused(visible, asked):
    with pytest.raises(BadInput, match="names a device twice"):
        find_devices(asked, "auto", on_cpu=False)


@pytest.mark.parametrize("asked", ["-1", "5-0", "NoDevFiles", "cuda:0", "0.5", "1-"])
def test_what_is_no_device_is_refused(visible, asked):
    with pytest.raises(BadInput, match=r"is no device -> .*0,2-5"):
        find_devices(asked, "auto", on_cpu=False)


def test_a_device_that_the_machine_does_not_have_is_refused(visible, monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="device 6 is not there: this machine has 6 -> 0 to 5"):
        find_devices("0,6", "auto", on_cpu=False)
    monkeypatch.setattr(pool, "_DRIVER_LIST", tmp_path / "another driver")
    assert find_devices("0,6", "auto", on_cpu=False) == (["0", "6"], True)


def test_numbers_count_within_what_is_visible(visible):
    visible("4,5,GPU-abc")
    assert find_devices("0-1", "auto", on_cpu=False) == (["4", "5"], True)
    assert find_devices("2", "auto", on_cpu=False) == (["GPU-abc"], True)
    assert find_devices("GPU-abc", "auto", on_cpu=False) == (["GPU-abc"], True)
    assert find_devices("all", "auto", on_cpu=False) == (["4", "5", "GPU-abc"], True)
    with pytest.raises(BadInput, match=r"device 3 is not there: .* shows 3 -> 0 to 2"):
        find_devices("0,3", "auto", on_cpu=False)


@pytest.mark.parametrize("nothing", ["", "-1", "NoDevFiles"])
def test_no_device_visible_is_a_machine_without_gpus(visible, nothing, monkeypatch):
    visible(nothing)
    monkeypatch.setattr(pool, "_cpu_slots", lambda: 2)
    assert find_devices("auto", "auto", on_cpu=False) == (["cpu0", "cpu1"], False)
    with pytest.raises(BadInput, match="shows 0 -> unset it, or trainer=cpu"):
        find_devices("0", "auto", on_cpu=False)


def test_a_device_behind_one_that_cannot_be_is_not_visible(visible):
    """As CUDA reads it."""
    visible("3,-1,4")
    assert find_devices("all", "auto", on_cpu=False) == (["3"], True)
