"""A reader's working folder: a clone with its environment, and beside it the data that the documents speak of."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import standins
from covidseg.config.paths import ROOT


@dataclass(frozen=True)
class Done:
    """What a command line came to."""

    status: int
    out: str
    err: str
    written: frozenset[Path]  # files below the folder that are new or newer, relative to it

    def called(self, name: str) -> list[Path]:
        """What was written under this name."""
        return sorted(path for path in self.written if path.name == name)


def public_data(root: Path) -> Path:
    """Stand-ins of the data sets and of a reader's own scans, under the names that the documents give them."""
    standins.covid19_ct_seg(root / "COVID-19-CT-Seg")
    standins.mosmed(root / "MosMedData")
    standins.covid19_20(root / "COVID-19-20")
    standins.nnunet(root / "Dataset001_Chest")
    standins.folder(root / "my_scans")
    standins.folder(root / "other_scans", count=4, table=False)
    standins.eight_bit(root / "coronacases")
    standins.scans(root / "new_scans")
    standins.scan(root / "new_scan.nii.gz")
    standins.scan(root / "scan.nii.gz", seed=70)
    masks = root / "masks"  # of somebody's own making, named as predict.py names them
    masks.mkdir()
    for path in (root / "my_scans" / "lesions").iterdir():
        shutil.copy(path, masks / path.name.replace(".nii", "_lesion.nii"))
    return root


class Workspace:
    """A folder in which command lines run as a reader runs them, one after the other."""

    def __init__(self, root: Path, data: Path):
        """`data`: of `public_data`; folders that commands write into are copied, the others linked."""
        self.root = root
        for name in ("src", "conf", "Makefile", "pyproject.toml", "constraints.txt"):
            (root / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "experiments", root / "experiments", ignore=shutil.ignore_patterns("results"))
        shutil.copytree(data / "masks", root / "masks")
        for path in data.iterdir():
            if path.name != "masks":
                (root / path.name).symlink_to(path)
        self._environment()
        self._done: dict[str, Done] = {}

    def once(self, line: str) -> Done:
        """`run`, but a line that ran here before is not run again."""
        if line not in self._done:
            self._done[line] = self.run(line)
        return self._done[line]

    def run(self, line: str, timeout: float = 300) -> Done:
        """Let bash run the line, in the environment that `source .venv/bin/activate` makes."""
        before = self._files()
        foreign = ("GPUS", "COVIDSEG_", "HYDRA_", "WANDB_", "MAKE", "MFLAGS")
        env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        env |= {"PATH": f"{self.root}/.venv/bin:{env['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = ["bash", "-c", line]
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=timeout)
        after = self._files()
        written = frozenset(path.relative_to(self.root) for path in after if after[path] != before.get(path))
        return Done(done.returncode, done.stdout, done.stderr, written)

    def _files(self) -> dict[Path, int]:
        own = [path for path in self.root.iterdir() if not path.is_symlink() and path.name != ".venv"]
        return {file: file.stat().st_mtime_ns for path in own for file in (path, *path.rglob("*")) if file.is_file()}

    def _environment(self) -> None:
        """`.venv` of this very interpreter, ready, so that no `make` builds another one."""
        venv = self.root / ".venv"
        venv.mkdir()
        (venv / "bin").symlink_to(Path(sys.executable).parent)
        for name in ("lib", "lib64", "include", "pyvenv.cfg"):
            if (Path(sys.prefix) / name).exists():
                (venv / name).symlink_to(Path(sys.prefix) / name)
        (venv / ".ready").touch()
