"""Masks and figures for scans that have none yet: one scan or thousands, resumable, by a manifest instead of trust.

An output folder holds `<case>_<structure>.nii.gz` and `<case>_quantities.json` for each case, `quantities.csv` for all
of them, `predictions.json` (the manifest) and `failures.csv` (what was refused). A case counts as done when the
manifest says so for the very same voxels, weights and settings and its files still have their hashes; a name proves
nothing.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covidseg.data.scans import Scan, ScanSource, read_scan, write_mask
from covidseg.errors import BadInput, EnvironmentFault
from covidseg.files import read_json, sha256, sweep_temporaries, write_csv, write_json
from covidseg.quantify import FIGURES, NOTES, NOTICE, doubts, quantify
from covidseg.segmenter import Segmenter

EXTENSIONS = (".nii.gz", ".nii", ".mha", ".nrrd")
MANIFEST, FAILURES, TABLE = "predictions.json", "failures.csv", "quantities.csv"
Progress = Callable[[str, int, int], None]  # (what is segmented, windows done, windows in all)


@dataclass(frozen=True)
class Result:
    """One scan's figures, what was noticed on the way, how long it took, and whether it was done before."""

    case: str
    figures: Mapping[str, Any]
    notes: Sequence[str]
    seconds: float
    resumed: bool = False


class Predictor:
    """Applies trained runs to scans, and keeps the books of one output folder.

    `reading`: arguments of `read_scan`. Raises `BadInput` where two runs segment the same structure, where `output` is
    no folder, or where its manifest is damaged.
    """

    def __init__(
        self,
        segmenters: Sequence[Segmenter],
        output: Path | str,
        extension: str,
        consolidation_hu: float,
        overwrite: bool = False,
        reading: Mapping[str, Any] | None = None,
    ):
        self.segmenters, self.output, self.overwrite = segmenters, Path(output), overwrite
        self.extension, self.consolidation_hu, self.reading = extension, consolidation_hu, reading or {}
        if extension not in EXTENSIONS:
            raise BadInput(f"extension={extension}", "is no format of a mask", f"one of {', '.join(EXTENSIONS)}")
        self.structures = [name for segmenter in segmenters for name in segmenter.task.structures]
        if twice := {name for name in self.structures if self.structures.count(name) > 1}:
            raise BadInput("run", f"two of the runs segment the {twice.pop()}", "give one run for each structure")
        if self.output.exists() and not self.output.is_dir():
            raise BadInput(f"output={self.output.name}", "is a file", "give a folder")
        self._settings = {
            "runs": [
                {"run": segmenter.name, "task": segmenter.task.name, "checkpoint_sha256": segmenter.checkpoint_sha256}
                for segmenter in segmenters
            ],
            "inference": [segmenter.inferer.settings for segmenter in segmenters],
            "consolidation_hu": consolidation_hu,
        }
        self._manifest = _read_manifest(self.output / MANIFEST)
        if self.output.is_dir():
            sweep_temporaries(self.output)

    def check(self, sources: Iterable[ScanSource]) -> None:
        """Raise `BadInput`, before any work, where an output would overwrite a scan or leave the folder."""
        sources, output = list(sources), self.output.resolve()
        scans = {source.path.resolve() for source in sources}
        for folder in scans:
            if folder.is_dir() and output.is_relative_to(folder):
                raise BadInput(
                    f"output={output.name}", "lies among the slices of a DICOM scan", "choose another folder"
                )
        for source in sources:
            for file in self._files(source.id).values():
                if file.resolve() in scans:
                    raise BadInput(file.name, "is one of the scans, and would be overwritten", "choose another output")
                if file.parent.resolve() != output:
                    raise BadInput(f"case {source.id}", "would be written outside the output folder", "rename it")

    def run(self, source: ScanSource, progress: Progress | None = None) -> Result:
        """Segment one scan and write its masks and figures, unless they stand there already. Raises `CovidSegError`."""
        started = time.perf_counter()
        files, entry = self._files(source.id), self._manifest.get(source.id)
        if entry is None:
            self._refuse_existing(files.values())
        scan = read_scan(source.path, **self.reading)
        request = {"input_sha256": _fingerprint(scan), **self._settings}
        if entry is not None and not self.overwrite:
            if self._stands(entry, request, files):
                figures = read_json(files["quantities"])["figures"]
                notes = (*scan.notes, *doubts(figures))
                return Result(source.id, figures, notes, time.perf_counter() - started, resumed=True)
            if entry["files"] or entry["request"] != request:  # not what a killed call left unfinished
                self._refuse_existing(files.values())
        self._record(source.id, {"request": request, "files": {}})  # from here on the files are ours

        with _memory_faults():
            masks = self._segment(scan, progress)
        for name, mask in masks.items():
            write_mask(files[name], mask.view(np.uint8), scan.geometry, overwrite=True)
        figures = quantify(masks.get("lung"), masks.get("lesion"), scan.voxels, scan.geometry, self.consolidation_hu)
        notes, seconds = (*scan.notes, *doubts(figures)), time.perf_counter() - started
        page = {"notice": NOTICE, "case": source.id, "figures": figures, "explanations": NOTES}
        page |= {"notes": notes, "seconds": round(seconds, 2), **self._settings}
        write_json(files["quantities"], page)
        hashes = {file.name: sha256(file) for file in files.values()}
        self._record(source.id, {"request": request, "files": hashes})
        return Result(source.id, figures, notes, seconds)

    def finish(self, failures: Mapping[str, Exception]) -> None:
        """Write the table of all cases in the folder, and the list of those refused in this call."""
        rows = []
        for case, entry in sorted(self._manifest.items()):
            page = self.output / f"{case}_quantities.json"
            if entry["files"] and page.is_file():
                figures = {name: value for name, value in read_json(page)["figures"].items() if name != "undefined"}
                rows.append({"case": case, **figures, "notice": NOTICE})
        if rows:
            write_csv(self.output / TABLE, rows, ("case", *FIGURES, "left_right_method", "notice"))
        if failures:
            refused = [{"case": case, "error": " ".join(str(error).split())} for case, error in failures.items()]
            write_csv(self.output / FAILURES, refused, ("case", "error"))
        else:
            (self.output / FAILURES).unlink(missing_ok=True)

    def _segment(self, scan: Scan, progress: Progress | None) -> dict[str, np.ndarray]:
        masks = {}
        for segmenter in self.segmenters:
            what = " and ".join(segmenter.task.structures)
            report = progress and (lambda done, total, what=what: progress(what, done, total))
            classes = segmenter.segment(scan, report)
            masks |= {name: part.in_prediction(classes) for name, part in segmenter.task.structures.items()}
        return masks

    def _files(self, case: str) -> dict[str, Path]:
        masks = {name: self.output / f"{case}_{name}{self.extension}" for name in self.structures}
        return {**masks, "quantities": self.output / f"{case}_quantities.json"}

    def _refuse_existing(self, files: Iterable[Path]) -> None:
        if self.overwrite:
            return
        for file in files:
            if os.path.lexists(file):
                wrong = "exists, and is not what this command wrote for this scan, these weights and these settings"
                raise BadInput(file.name, wrong, "choose another output, or overwrite=true")

    def _stands(self, entry: Mapping[str, Any], request: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
        """Whether the manifest's entry is this very work, and its files are as they were written."""
        hashes = entry["files"]
        return (
            entry["request"] == request
            and hashes.keys() == {file.name for file in files.values()}
            and all(file.is_file() and sha256(file) == hashes[file.name] for file in files.values())
        )

    def _record(self, case: str, entry: dict[str, Any]) -> None:
        self._manifest[case] = entry
        write_json(self.output / MANIFEST, {"notice": NOTICE, "cases": self._manifest})


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        cases = read_json(path)["cases"]
        if not all({"request", "files"} <= entry.keys() for entry in cases.values()):
            raise KeyError("request")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(path.name, "is damaged", "remove it; overwrite=true then does its cases again") from error
    return cases


def _fingerprint(scan: Scan) -> str:
    """sha256 of the voxels as they were read and of where they lie, whatever the file is called."""
    digest = hashlib.sha256(json.dumps(scan.geometry.to_dict()).encode())
    digest.update(np.ascontiguousarray(scan.voxels))
    return digest.hexdigest()


@contextmanager
def _memory_faults() -> Iterator[None]:
    """Running out of memory, on the device or beside it, as one line with a remedy."""
    remedy = "inference.batch_size=1, inference.whole=false, device=cpu, or a machine with more"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise EnvironmentFault("memory", "is not enough for this scan", remedy) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # how torch words it on a CPU
            raise
        raise EnvironmentFault("memory", "is not enough for this scan", remedy) from error
