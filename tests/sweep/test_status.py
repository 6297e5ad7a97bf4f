"""What `status` says of runs in every state, from their folders and the ledgers alone."""

import io
import json

import pytest
from rich.console import Console

from covidseg.cli.status import overview
from covidseg.sweep.ledger import Ledger
from covidseg.sweep.rows import State
from covidseg.sweep.view import describe


def shown(bench, name=None):
    console = Console(width=200, file=io.StringIO())
    group, running = overview(bench.folder / "runs", name)
    console.print(group)
    return console.file.getvalue(), running


def test_each_state_is_shown_with_what_matters_about_it(bench):
    rows = [
        bench.row("done"),
        bench.row("failed", mode="raises"),
        bench.row("killed", mode="is killed", steps=3),
        bench.row("waiting"),
    ]
    bench.run(rows[:3])
    ledger = Ledger(bench.folder / "runs" / ".sweeps", "table2", rows)
    with ledger.held():
        rows[3].state, rows[3].placed_on = State.RUNNING, ["2"]
        rows[3].folder.path.mkdir(parents=True)
        running = {"state": "running", "step": 30, "max_steps": 90, "patches_per_second": 4.0}
        (rows[3].folder.path / "status.json").write_text(json.dumps(running))
        rows[3].max_steps = 90
        ledger.save()
        text, running = shown(bench)
    assert running
    lines = {line.split("/")[1]: line for line in text.splitlines() if "/seed0" in line}
    assert "done" in lines["done"] and "Dice lesion 0.500 (n=4)" in lines["done"]
    assert "failed" in lines["failed"] and "lesion outside the scan" in lines["failed"]
    assert "interrupted" in lines["killed"]
    assert "on 2, step 30 of 90, 4 patches/s, 30 s left" in lines["waiting"]


@pytest.mark.parametrize(
    ("told", "shown_as"), [({"evaluated": [3, 24]}, "evaluating 3 of 24"), ({}, "step 90 of 90, evaluating")]
)
def test_how_far_an_evaluation_is(bench, told, shown_as):
    (row,) = [bench.row("scoring")]
    row.max_steps = 90
    row.folder.write_status("running", step=90, max_steps=90, **told)
    assert shown_as in describe(State.RUNNING, "", ["0"], row.folder, 90, 2)


def test_a_run_that_cannot_be_described_hides_no_other(bench):
    for name, config in (("damaged", "a: ["), ("listed", "training: {batch_size: 2}\ntrainer: {devices: [0, 1]}")):
        row = bench.row(name)
        row.folder.write_status("running", step=3, max_steps=9)
        row.folder.config_path.write_text(config)
    bench.row("alone").folder.write_status("interrupted", step=3, max_steps=9)
    text, _ = shown(bench)
    assert "config.yaml: cannot be read" in text
    assert "table2/listed" in text and "table2/alone" in text


def test_a_run_of_no_sweep_is_shown_too(bench):
    row = bench.row("alone")
    row.folder.write_status("interrupted", step=3, max_steps=9)
    text, running = shown(bench)
    assert not running
    assert "table2/alone/lesion/seed0" in text and "stopped at step 3 of 9" in text
    assert "alone" not in shown(bench, "table1")[0]
