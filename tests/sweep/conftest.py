import io
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from rich.console import Console

from covidseg.config.paths import CONF
from covidseg.runs.folder import RunFolder
from covidseg.sweep import pool as pool_module
from covidseg.sweep.driver import drive
from covidseg.sweep.ledger import Ledger
from covidseg.sweep.pool import LocalPool
from covidseg.sweep.rows import Row
from covidseg.sweep.view import View

HERE = Path(__file__).parent
FAKE = HERE / "fake_run.py"


class Bench:
    """Sweeps of fake runs below a temporary folder."""

    def __init__(self, folder: Path):
        self.folder, self.events = folder, folder / "events.jsonl"

    def row(self, name: str, devices: int = 1, **options: object) -> Row:
        run = RunFolder(self.folder / "runs" / "table2" / name / "lesion" / "seed0")
        options = {"folder": run.path, "events": self.events, **options}
        return Row(
            overrides=[f"{key}={value}" for key, value in options.items()],
            folder=run,
            name=f"table2/{name}/lesion/seed0",
            hash="hash",
            devices=devices,
            nodes=1,
            max_steps=int(options.get("steps", 2)),
            batch_size=2,
            model={},
            patch_size_zyx=[8, 8, 8],
        )

    def run(self, rows: list[Row], devices: int = 3, retry_failed: bool = False, grace: float = 30) -> str:
        """Judge and drive the rows on so many GPUs; returns what was shown."""
        ids = [str(k) for k in range(devices)]
        for row in rows:
            row.judge(retry_failed)
        shown = io.StringIO()
        view = View(rows, Console(file=shown, width=200))
        ledger = Ledger(self.folder / "runs" / ".sweeps", "table2", rows)
        drive(rows, LocalPool(ids, True, "table2"), ledger, view, grace)
        return shown.getvalue()

    def started(self) -> list[str]:
        """Names of the rows in the order of their starts."""
        return [Path(folder).parts[-3] for _, event, folder, _ in self._events() if event == "start"]

    def overlaps(self) -> int:
        """How often a run started on a device that another one held."""
        held, count = defaultdict(set), 0
        for _, event, folder, devices in self._events():
            for device in devices.split(","):
                if event == "start":
                    count += bool(held[device])
                    held[device].add(folder)
                else:
                    held[device].discard(folder)
        return count

    def _events(self) -> list[list]:
        return sorted(json.loads(line) for line in self.events.read_text().splitlines())


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("covidseg.sweep.driver._POLL", 0.02)
    monkeypatch.setattr("covidseg.sweep.driver._LOOK_ELSEWHERE", 0.2)
    monkeypatch.setattr(pool_module, "program", lambda: [sys.executable, str(FAKE)])
    return Bench(tmp_path)


class Toy:
    """The application toy.py in a temporary folder, with a row each for the ways a run can end."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "conf" / "row").mkdir(parents=True)
        shutil.copy(HERE / "toy.py", folder)
        (folder / "conf" / "train.yaml").write_text((HERE / "toy.yaml").read_text().replace("CONF", str(CONF)))
        for name, mode in {"a": "ok", "b": "raises", "c": "ok", "x": "exits early", "y": "is killed"}.items():
            text = f"# @package _global_\nrow: {name}\ntrainer: {{mode: {mode}}}\n"
            (folder / "conf" / "row" / f"{name}.yaml").write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "toy.py", *arguments],
            cwd=self.folder,
            env={**os.environ, "GPUS": "4,5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, timeout: float = 240) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err

    def statuses(self) -> dict[str, dict]:
        """status.json of each row."""
        return {path.parts[-4]: json.loads(path.read_text()) for path in self.folder.glob("runs/toy/*/*/*/status.json")}


@pytest.fixture
def app(tmp_path):
    return Toy(tmp_path)


@pytest.fixture
def other_app(tmp_path):
    """The same application with the same rows in another folder."""
    return Toy(tmp_path / "other checkout")
