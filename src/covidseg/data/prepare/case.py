"""One case, from its files to a prepared folder: read, check, merge the masks, resample, describe, write."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from covidseg.data.datasets import Source
from covidseg.data.prepare.grid import Grid
from covidseg.data.store import ARRAYS, LABELS
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.faults import environment_faults
from covidseg.system.files import TEMPORARY_PREFIX, fsync, sha256

NEAR_MM = 8.0  # a lesion this close to the lung mask belongs to it: masks drawn around lesions leave them out
SPARE_BYTES = 2**24  # left free on the disk beside what a case needs


@dataclass(frozen=True)
class CaseRequest:
    """What a worker is asked for: one case, the options that shape it, and where it goes."""

    source: Source
    digests: Mapping[str, str]  # name of each source file -> sha256
    key: str  # hash of everything that decides the result
    spacing_zyx: tuple[float, float, float]
    foreground_voxels: int
    may_be_empty: bool
    folder: Path | None  # None: only check


def build_case(request: CaseRequest) -> dict[str, Any]:
    """Check one case and, given a folder, put it there, whole or not at all. Returns the line of the table.

    Raises `BadInput` where the case is refused, `EnvironmentFault` where the disk is.
    """
    from covidseg.scans.read import read_scan

    source = request.source
    scan = read_scan(source.image, assume=source.assume, series=source.series, option=source.option, recursive=True)
    labels, lung_voxels, notes = _merge_masks(source, scan.geometry)
    notes = [*source.notes, *scan.notes, *notes]
    ml = np.prod(scan.geometry.spacing_zyx) / 1000
    counts = np.bincount(labels.ravel(), minlength=3)
    volume_ml = {
        name: round(float(counts[value] * ml), 3) for name, value in LABELS.items() if name in source.annotated
    }
    if "lesion" in source.annotated and not counts[LABELS["lesion"]]:
        if not request.may_be_empty:
            remedy = "data.may_be_empty=true if there is none to be marked"
            raise BadInput(f"case {source.id}", "its lesion mask is empty", remedy)
        notes.append("no lesion")
    if "lung" in source.annotated and not lung_voxels:
        raise BadInput(f"case {source.id}", "its lung mask is empty", "complete the mask, or remove its file")

    grid = Grid.plan(scan.voxels, scan.geometry, request.spacing_zyx)
    if not grid.body_found:
        notes.append("no body found: the whole volume is kept")
    kept = np.bincount(scan.geometry.to_canonical(labels)[tuple(slice(a, b) for a, b in grid.box_zyx)].ravel())
    if outside := int(counts[1:].sum() - kept[1:].sum()):
        notes.append(f"{outside} labelled voxels lie outside the body and cannot be trained on")
    info = {
        "id": source.id,
        "patient": source.patient or source.id,
        "site": source.site,
        "annotated": list(source.annotated),
        "sources": dict(request.digests),
        "key": request.key,
        "grid": grid.to_dict(),
        "volume_ml": volume_ml,
        "checks": ["image", "geometry of the masks", "values of the masks", "body"],
        "notes": notes,
    }
    if request.folder is not None:
        _write(request, request.folder, info, grid.image(scan.voxels), grid.labels(labels), labels)
    return info


def _merge_masks(source: Source, geometry: Geometry) -> tuple[np.ndarray, int, list[str]]:
    """(uint8 label map of all masks of a case on the scan's grid, voxels marked as lung in any of them, notes).

    A lesion overrides the lung it lies in: a lung that is all lesion is still marked in its own mask.
    """
    from covidseg.scans.read import read_mask

    merged = np.zeros(geometry.shape_zyx, np.uint8)
    notes: list[str] = []
    lungs, lung_voxels = None, 0
    for mask in source.masks:
        labels, seen = read_mask(
            mask.path,
            geometry,
            labels=mask.labels,
            assume=source.assume,
            option=source.option,
            mapped_by=mask.mapped_by,
        )
        notes += seen
        np.maximum(merged, labels, out=merged)
        lung_voxels += int(np.count_nonzero(labels == LABELS["lung"]))
        if set(mask.labels.values()) - {0} == {LABELS["lung"]}:
            lungs = labels > 0
    lesion = merged == LABELS["lesion"]
    if lungs is not None and lesion.any():
        notes += _suspicious(lesion, lungs, geometry)
    return merged, lung_voxels, notes


def _suspicious(lesion: np.ndarray, lungs: np.ndarray, geometry: Geometry) -> list[str]:
    """Warnings about a lesion far outside the lungs, or larger than they are: masks exchanged?"""
    steps = [max(1, round(NEAR_MM / 2 / mm)) for mm in geometry.spacing_zyx]
    coarse = tuple(slice(None, None, step) for step in steps)
    near = ndimage.binary_dilation(lungs[coarse], iterations=2)
    stray = int((lesion[coarse] & ~near).sum() * np.prod(steps))
    notes = []
    if stray > 0.05 * lesion.sum():
        share = f"about {stray} of {int(lesion.sum())} lesion voxels"
        notes.append(f"{share} lie more than {NEAR_MM:.0f} mm outside the lung mask")
    if lesion.sum() > lungs.sum():
        notes.append(f"more lesion ({int(lesion.sum())} voxels) than lung ({int(lungs.sum())}): labels exchanged?")
    return notes


def _write(
    request: CaseRequest, folder: Path, info: dict, image: np.ndarray, mask: np.ndarray, reference: np.ndarray
) -> None:
    need = image.nbytes + mask.nbytes + reference.nbytes // 20 + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < need:
        wrong = f"needs {need >> 20} MiB of disk and {free >> 20} MiB are free"
        raise EnvironmentFault(f"case {request.source.id}", wrong, "free some space or choose another paths.data")
    info["foreground"] = _foreground(mask, request.foreground_voxels)
    target = folder / request.source.id
    temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with environment_faults(target):
            temporary.mkdir()
            np.save(temporary / "image.npy", image)
            np.save(temporary / "mask.npy", mask)
            np.savez_compressed(temporary / "reference.npz", labels=reference)
            info["sha256"] = {name: sha256(temporary / name) for name in ARRAYS}
            (temporary / "case.json").write_text(_json(info))
            for path in (*temporary.iterdir(), temporary):
                fsync(path)
            os.rename(temporary, target)
            fsync(folder)
    except EnvironmentFault as fault:
        raise EnvironmentFault(
            f"case {request.source.id}", f"{fault.wrong}; it needs {need >> 20} MiB", fault.remedy
        ) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _foreground(mask: np.ndarray, count: int) -> dict[str, list]:
    """Up to `count` voxels of each class, drawn without replacement, in the order of the array.

    The draw follows from the mask alone: code that makes the same mask also makes the same patches to train on.
    """
    content = hashlib.sha256(str(mask.shape).encode() + np.ascontiguousarray(mask, np.uint8).tobytes())
    draw = np.random.default_rng(int.from_bytes(content.digest()[:8], "big"))
    chosen = {}
    for name, value in LABELS.items():
        flat = np.flatnonzero(mask == value)
        flat = np.sort(draw.choice(flat, count, replace=False)) if len(flat) > count else flat
        chosen[name] = np.stack(np.unravel_index(flat, mask.shape), axis=1).tolist()
    return chosen


def _json(info: dict) -> str:
    """Indented, but the thousands of foreground coordinates on one line for each class."""
    text = json.dumps({key: value for key, value in info.items() if key != "foreground"}, indent=2, allow_nan=False)
    points = {name: json.dumps(voxels, separators=(",", ":")) for name, voxels in info["foreground"].items()}
    lines = ",\n".join(f'    "{name}": {voxels}' for name, voxels in points.items())
    return f'{text[:-2]},\n  "foreground": {{\n{lines}\n  }}\n}}\n'
