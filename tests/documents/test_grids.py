"""What a sweep that a document shows would run in full: planned, counted, not run."""

import pytest
from hydra.plugins.sweeper import Sweeper

from covidseg.config.paths import EXPERIMENTS
from covidseg.sweep import launch
from documents import all_commands
from reading import ROWS, Call

FOLDS = {"covid19_ct_seg": 5}  # no test set of its own: cross-validated
CALLS = [call for command in all_commands() if (call := Call(command)).option("sweep")]
ELSEWHERE = ("launcher=", "hydra.launcher.", "paths.")  # where it runs, which changes no row
SWEEPS = {" ".join(option for option in call.options if not option.startswith(ELSEWHERE)): call for call in CALLS}


@pytest.fixture
def planned(monkeypatch, command):
    """`planned("sweep=demo", ...)` -> names of the runs that the command would make."""
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)  # composes each run once more

    def plan(*options):
        caught = []
        monkeypatch.setattr(launch, "launch", lambda rows, *_, **__: caught.extend(rows))
        status, out, err = command("train", *options, "trainer=cpu")
        assert status == 0, err or out
        assert len({row.name for row in caught}) == len(caught)
        return [row.name for row in caught]

    return plan


def expected(call):
    """Rows x tasks x seeds x folds, as the documents tell it; a recipe is chosen on lesions alone, and the demo has two
    networks and one of each else.
    """
    if call.option("sweep") == "demo":
        return 2
    rows = len(list((EXPERIMENTS / ROWS[call.option("sweep")][0]).glob("*.yaml")))
    seeds = len(call.option("seed", "0,1,2").split(","))
    folds = len(fold.split(",")) if (fold := call.option("fold")) else _folds(call)
    tasks = len(call.option("task", "lesion" if call.option("sweep") == "recipe" else "lesion,lung").split(","))
    return rows * tasks * seeds * folds


def _folds(call):
    """Those that the command names for its data, or that the data have."""
    return int(call.option("data.splits.folds") or FOLDS.get(call.option("data"), 1))


@pytest.mark.slow
@pytest.mark.parametrize("options", SWEEPS)
def test_the_full_grid_of_a_documented_sweep(planned, options):
    assert len(planned(*options.split())) == expected(SWEEPS[options])


def test_the_grid_of_the_networks_on_the_public_data(planned):
    """In a number, so that a lost row is seen: six networks, two tasks, three seeds, the five published folds."""
    names = planned("sweep=comparison", "data=covid19_ct_seg", "data.root=COVID-19-CT-Seg")
    assert len(names) == 6 * 2 * 3 * 5
    assert names[:2] == ["table1/covidsegnet/lesion/seed0-fold0", "table1/covidsegnet/lesion/seed0-fold1"]


def test_the_grid_of_the_demo(planned):
    assert planned("sweep=demo") == ["demo/full/lesion/seed0", "demo/unet4/lesion/seed0"]
