"""What a sweep that a document shows would run in full: planned, counted, not run."""

import pytest

from covidseg.paths import EXPERIMENTS
from covidseg.sweep import launch
from documents import all_commands
from reading import Call

ROWS = {"comparison": "table1", "ablation": "table2"}
FOLDS = {"covid19_ct_seg": 5}  # no test set of its own: cross-validated
SWEEPS = {call.shown: call for command in all_commands() if (call := Call(command)).option("sweep")}


@pytest.fixture
def planned(monkeypatch, in_process, public_data, tmp_path):
    """`planned("sweep=demo", ...)` -> names of the runs that the command would make."""
    for path in public_data.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def plan(*options):
        caught = []
        monkeypatch.setattr(launch, "launch", lambda rows, *_, **__: caught.extend(rows))
        status, out, err = in_process("train", *options, "trainer=cpu")
        assert status == 0, err or out
        return [row.name for row in caught]

    return plan


def expected(call):
    """Rows x tasks x seeds x folds, as the documents tell it."""
    if call.option("sweep") == "demo":
        return 2
    rows = len(list((EXPERIMENTS / ROWS[call.option("sweep")]).glob("*.yaml")))
    seeds = len(call.option("seed", "0").split(","))
    folds = len(fold.split(",")) if (fold := call.option("fold")) else FOLDS.get(call.option("data"), 1)
    return rows * 2 * seeds * folds


@pytest.mark.parametrize("shown", SWEEPS)
def test_the_full_grid_of_a_documented_sweep(planned, shown):
    call = SWEEPS[shown]
    names = planned(*[option for option in call.options if not option.startswith(("launcher=", "hydra.launcher."))])
    assert len(names) == len(set(names)) == expected(call)


def test_the_grids_are_those_of_the_tables(planned):
    """In numbers, so that a lost row is seen."""
    data = ["data=covid19_ct_seg", "data.root=COVID-19-CT-Seg"]
    assert len(planned("sweep=comparison", "data=phantom")) == 6 * 2
    assert len(planned("sweep=comparison", *data)) == 6 * 2 * 5
    assert len(planned("sweep=ablation", *data, "seed=0,1,2")) == 10 * 2 * 3 * 5
    assert len(planned("sweep=demo")) == 2
