"""Which devices GPUS= and CUDA_VISIBLE_DEVICES mean (K11)."""

import pytest

from covidseg.runs.folder import RunFolder
from covidseg.sweep import pool
from covidseg.sweep.pool import LocalPool, find_devices, require_per_device
from covidseg.system.devices import require_given_gpus
from covidseg.system.errors import BadInput, EnvironmentFault


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


class Wish:
    """A row's wish for devices, as the pool asks for it."""

    nodes = 1

    def __init__(self, devices, folder=None, overrides=()):
        self.name, self.devices, self.overrides, self.cost = "table2/a/lesion/seed0", devices, list(overrides), 1.0
        self.folder, self.placed_on = RunFolder(folder) if folder else None, []


def test_runs_share_a_gpu_where_that_is_asked_for():
    shared = LocalPool(["0", "1"], True, "table2", per_device=2)
    assert shared.slots == 4 and str(shared) == "2 GPUs (0, 1), 2 runs on each"
    assert [shared.devices.take(Wish(1)) for _ in range(4)] == [["0"], ["1"], ["0"], ["1"]]
    with pytest.raises(BadInput, match=r"takes whole GPUs, and 2 runs share each -> hydra\.launcher\.per_device=1"):
        shared.fit(Wish(2))
    assert LocalPool(["cpu0"], False, "table2", per_device=2).slots == 1
    for wrong in (0, -1, "two", True, 1.5):
        with pytest.raises(BadInput, match=r"hydra\.launcher\.per_device"):
            require_per_device(wrong)


@pytest.mark.parametrize("per_device, threads", [(1, 6), (2, 3)])
def test_a_gpus_run_is_told_its_device_and_its_share_of_the_cores(tmp_path, monkeypatch, per_device, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 12)
    monkeypatch.setattr(pool, "program", lambda: ["env"])
    machine = LocalPool(["4", "GPU-x"], True, "table2", per_device)
    rows = [Wish(1, tmp_path / f"runs/t/{name}/lesion/seed0") for name in "ab"]
    for row in rows:
        row.folder.path.mkdir(parents=True)
        machine.start(row)
    while machine.busy:
        machine.ended()
    for row, device in zip(rows, ("4", "GPU-x"), strict=True):
        lines = (row.folder.path / "output.log").read_text().splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        assert told["CUDA_VISIBLE_DEVICES"] == told["COVIDSEG_GPUS"] == device
        assert told["OMP_NUM_THREADS"] == str(threads)


def test_a_run_that_does_not_find_its_gpu_ends_at_once(monkeypatch):
    monkeypatch.setenv("COVIDSEG_GPUS", "4,5")
    require_given_gpus(lambda: 2)
    with pytest.raises(EnvironmentFault, match=r"GPU 4,5: was given to this run, and torch finds 1 of 2"):
        require_given_gpus(lambda: 1)
    monkeypatch.delenv("COVIDSEG_GPUS")
    require_given_gpus(lambda: 0)
