"""A copy of a prepared data set on a disk of the node that trains: a shared one is slow where many read from it."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from covidseg.system.errors import EnvironmentFault
from covidseg.system.faults import environment_faults
from covidseg.system.files import TEMPORARY_PREFIX
from covidseg.system.locks import locked

STAGE = "COVIDSEG_STAGE"  # the folder on the node's own disk; set by hydra.launcher.stage, or by hand
_MARKER = "dataset.json"
log = logging.getLogger(__name__)


def staged(folder: Path) -> Path:
    """The copy of the prepared folder below $COVIDSEG_STAGE, made if need be; `folder` itself where that is not set.

    The folder's name holds the hash of what made it, so that a copy of another state is another one. One process of the
    node copies, the others wait. Raises `EnvironmentFault` where the node's disk has no room for it.
    """
    where = os.environ.get(STAGE)
    if not where:
        return folder
    target = Path(where) / folder.name
    if target.resolve() == folder.resolve():
        return folder
    with environment_faults(target):
        Path(where).mkdir(parents=True, exist_ok=True)
    with locked(Path(where) / f".{folder.name}.lock", waiting=lambda: log.info("waiting for the copy on this node")):
        if not (target / _MARKER).is_file():
            _copy(folder, target)
    return target


def _copy(folder: Path, target: Path) -> None:
    need = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(target.parent).free
    if need > free:
        wrong = f"needs {need >> 20} MiB on this node, and {free >> 20} MiB are free"
        raise EnvironmentFault(f"{STAGE}={target.parent}", wrong, "stage elsewhere, or train without")
    with environment_faults(target):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
        try:
            shutil.copytree(folder, temporary / folder.name)
            shutil.rmtree(target, ignore_errors=True)  # of a copy that broke off before its marker was there
            os.rename(temporary / folder.name, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
