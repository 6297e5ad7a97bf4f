"""What an output folder tells of earlier calls, read back with distrust; and what its disk refuses."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.scans.read import Scan
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.faults import is_out_of_memory
from covidseg.system.files import read_json
from covidseg.system.readback import require_shape


class OutputFault(EnvironmentFault):
    """The output folder cannot be written: the next scan would meet it too."""


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    if not os.path.lexists(path):
        return {}
    try:
        cases = read_json(path)["cases"]
        require_shape(cases, {...: {"request": dict, "files": {...: str}}}, path.name, "")
        if any(case in ("", ".", "..") or "/" in case or "\0" in case for case in cases):
            raise ValueError("it names what is no file")
    except (ValueError, KeyError, TypeError, BadInput, IsADirectoryError) as error:
        raise BadInput(path.name, "is damaged", "remove it; overwrite=true then does its cases again") from error
    except OSError as error:
        raise OutputFault(path.name, f"cannot be read ({error.strerror})", "choose another output") from error
    return cases


def read_page(page: Path) -> dict[str, Any]:
    """The content of a case's JSON file."""
    try:
        return require_shape(read_json(page), {"figures": dict, "flags?": [{"key": str, "text": str}]}, page.name, "")
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(page.name, "is damaged", "overwrite=true does its case again") from error


def read_failures(path: Path) -> dict[str, str]:
    """{case: error} of a failures.csv; nothing where there is none, or where it is something else."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return {row["case"].removeprefix("'"): row["error"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, AttributeError, csv.Error):
        return {}


@contextmanager
def output_faults(folder: Path) -> Iterator[None]:
    """What the disk refuses while the output is written, told apart from what it refuses while a scan is read."""
    try:
        yield
    except OutputFault:
        raise
    except EnvironmentFault as error:
        raise OutputFault(error.what, error.wrong, error.remedy) from error
    except OSError as error:
        wrong = f"cannot be written ({error.strerror})"
        raise OutputFault(
            f"output={folder}", wrong, "choose another folder, or make room and mend the rights"
        ) from error


def fingerprint(scan: Scan) -> str:
    """sha256 of the voxels as they were read and of where they lie, whatever the file is called."""
    digest = hashlib.sha256(json.dumps(scan.geometry.to_dict()).encode())
    digest.update(np.ascontiguousarray(scan.voxels).data)
    return digest.hexdigest()


@contextmanager
def memory_faults() -> Iterator[None]:
    """Running out of memory, on the device or beside it, as one line with a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "inference.batch_size=1, inference.whole=false, device=cpu, or a machine with more"
        raise EnvironmentFault("memory", "is not enough for this scan", remedy) from error
