import json

import pytest

from covidseg.sweep.account import account
from covidseg.sweep.rows import State


def test_the_shares_add_up_to_the_devices_time(bench):
    rows = [bench.row("a"), bench.row("b", devices=2), bench.row("skipped")]
    for row in rows:
        row.state = State.DONE
        row.folder.path.mkdir(parents=True)
        attempts = [{"started": "2026-01-01T00:00:10Z"}]
        (row.folder.path / "manifest.json").write_text(json.dumps({"attempts": attempts}))
        (row.folder.path / "metrics.json").write_text(json.dumps({"train": {"seconds": 60.0}}))
    for row in rows[:2]:
        row.started, row.seconds = 1767225600.0, 100.0  # 2026-01-01T00:00:00Z
    spent = account(rows, devices=3, wall=120.0)
    assert (spent.starting, spent.training, spent.evaluating, spent.waiting) == pytest.approx((30, 180, 90, 60))
    assert spent.overhead == pytest.approx(2.0)
    assert str(spent) == (
        "2 min on 3 devices: 50% training, 8% starting, 25% evaluating, 17% waiting; 2.00 times the training alone"
    )


def test_nothing_made_is_nothing_to_account_for(bench):
    assert account([bench.row("a")], 1, 10.0) is None
