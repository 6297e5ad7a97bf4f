"""Folders from a stranger: an honest run and an honest prepared folder, and ways to make them hostile."""

import hashlib
import importlib
import json
import shutil
import sys

import numpy as np
import pytest

from covidseg.data.store import ARRAYS, MARKER
from covidseg.system.files import sha256, write_json


class Place:
    """A working folder with `runs/train/r/lesion/seed0`, the prepared folder it was trained on, and a canary.

    Everything outside `allowed` must be as it was when `untouched` is asked, and no payload may have run.
    """

    def __init__(self, root, run, prepared):
        self.root, self.run, self.prepared = root, run, prepared
        self.canary = root / "canary"
        self.pickled = root / "pickled.npy"
        np.save(self.pickled, np.array([_Payload(str(self.canary))], dtype=object), allow_pickle=True)
        self.before = self._snapshot()

    def payloads(self):
        """Configurations that run something for whoever instantiates them without looking."""
        touch = f"touch {self.canary}"
        return [
            {"_target_": "numpy.load", "file": str(self.pickled), "allow_pickle": True},
            {"_target_": "os.system", "command": touch},
            {"_target_": "subprocess.run", "args": touch, "shell": True},
            {"_target_": "torch.load", "f": str(self.pickled), "weights_only": False},
            {"_target_": "covidseg.system.files.write_text", "path": str(self.canary), "text": "x"},
            {"x": [{"y": {"_target_": "pathlib.Path.touch", "self": str(self.canary)}}]},
        ]

    def require_untouched(self):
        assert not self.canary.exists(), "a payload ran"
        assert self._snapshot() == self.before, "something was written elsewhere"

    def _snapshot(self):
        """Content of all that no command has any business with: everything but runs/, data/ and experiments/."""
        others = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        mine = [path for path in others if path.relative_to(self.root).parts[0] not in ("runs", "data", "experiments")]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in mine}

    def sign(self):
        """Make the checksums of the prepared folder agree with what it holds now, as a stranger would."""
        index = json.loads((self.prepared / "dataset.json").read_text())
        if isinstance(index, dict) and isinstance(index.get("cases"), list):
            for row in index["cases"]:
                case = self.prepared / str(row.get("id")) if isinstance(row, dict) else None
                if case is None or not (case / "case.json").is_file():
                    continue
                info = json.loads((case / "case.json").read_text())
                if isinstance(info, dict) and isinstance(info.get("sha256"), dict):
                    info["sha256"] = {name: sha256(case / name) for name in ARRAYS if (case / name).is_file()}
                    (case / "case.json").write_text(json.dumps(info))
                row["sha256"] = sha256(case / "case.json")
            (self.prepared / "dataset.json").write_text(json.dumps(index))
        write_json(self.prepared / MARKER, {n: sha256(self.prepared / n) for n in ("dataset.json", "splits.json")})


class _Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (self.canary, "w")


@pytest.fixture
def place(tmp_path, make_run, prepared):
    """The honest folders; each test spoils its own copy."""
    root = tmp_path / "work"
    (root / "data/prepared").mkdir(parents=True)
    (root / "elsewhere").mkdir()
    copied = root / "data/prepared/small-0123456789ab"
    shutil.copytree(prepared, copied)
    spacing = {"data.spacing_zyx": "[6,5,5]", "paths.data": root / "data", "paths.runs": root / "runs", "name": "t"}
    run = make_run(
        "lesion", **spacing, row="r", model="unet3d", **{"inference.roi_zyx": "[32,48,48]", "model.width": 2}
    )
    write_json(run / "manifest.json", {"data": {"name": "small", "hash": "0123456789ab"}, "attempts": []})
    row = "c6,p6,A,test,lesion,0.5,0.5,0.5,0.5,3.0,1,1,1,0.1,0.1,\n"
    header = "case,patient,site,set,structure,dice,sensitivity,precision,nsd,hd95_mm,tp,fp,fn,reference_ml,"
    (run / "cases.csv").write_text(header + "prediction_ml,undefined\n" + row)
    summary = {"n": 1, "dice": {"mean": 0.5, "n": 1}}
    write_json(run / "metrics.json", {"sets": {"test": {"lesion": summary}}, "train": {"seconds": 1.0, "steps": 8}})
    write_json(run / "status.json", {"state": "finished", "step": 8, "max_steps": 8, "pid": 1})
    (run / "metrics.csv").write_text("step,train/loss,val/dice\n1,0.5,\n2,0.4,0.3\n")
    return Place(root, run, copied)


@pytest.fixture
def command(monkeypatch, capsys, place):
    """`command("evaluate", "run=x")` in the working folder: the exit status, having checked how it ended.

    0 with a sane result, or 2 or 3 with one `error:` line; never a traceback, and nothing ran or was written elsewhere.
    """

    def run(name, *arguments):
        main = importlib.import_module(f"covidseg.cli.{name}").main
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.chdir(place.root)
        status = 0
        try:
            main()
        except SystemExit as leave:
            status = leave.code
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        run.said = said
        assert status in (0, 2, 3), said
        assert len(errors) == (1 if status else 0), said
        assert "Traceback" not in said
        place.require_untouched()
        return status

    run.said = ""
    return run
