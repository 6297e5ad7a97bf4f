"""Masks and figures for scans that have none yet: one scan or thousands, resumable, by a manifest instead of trust.

An output folder holds `<case>_<structure>.nii.gz` and `<case>_quantities.json` for each case, `quantities.csv` for all
of them, `predictions.json` (the manifest) and `failures.csv` (what was refused). A case counts as done when the
manifest says so for the very same voxels, weights and settings and its files still have their hashes; a name proves
nothing. Several processes may share a folder: the manifest is read and written back under a lock.
"""

import csv
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.evaluation.flags import Findings, flags
from covidseg.inference.quantify import FIGURES, NOTES, NOTICE, quantify
from covidseg.inference.segmenter import Segmenter
from covidseg.scans.read import ALL_SERIES, Scan, ScanSource, read_scan
from covidseg.scans.write import DICOM_SEG, MASK_FORMATS, write_mask
from covidseg.scans.write_dicom import require_highdicom
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.faults import is_out_of_memory
from covidseg.system.files import read_json, sha256, sweep_temporaries, write_csv, write_json
from covidseg.system.locks import locked
from covidseg.system.readback import require_shape

MANIFEST, FAILURES, TABLE, LOCK = "predictions.json", "failures.csv", "quantities.csv", ".predictions.lock"
Progress = Callable[[str, int, int], None]  # (what is segmented, windows done, windows in all)


class OutputFault(EnvironmentFault):
    """The output folder cannot be written: the next scan would meet it too."""


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

    `reading`: arguments of `read_scan`. Raises `BadInput` where two runs segment the same structure, for a
    `consolidation_hu` that is no number, where `output` is no folder, where its manifest is damaged, or where it holds
    a table that no manifest tells to be this command's.
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
        if not segmenters:
            raise BadInput("run", "there is none", "give a run folder")
        if type(consolidation_hu) not in (int, float) or not math.isfinite(consolidation_hu):
            raise BadInput(f"consolidation_hu={consolidation_hu}", "is no number of HU", "consolidation_hu=-300")
        self.segmenters, self.output, self.overwrite = segmenters, Path(output), overwrite
        self.extension, self.consolidation_hu, self.reading = extension, consolidation_hu, reading or {}
        if extension not in MASK_FORMATS:
            raise BadInput(f"extension={extension}", "is no format of a mask", f"one of {', '.join(MASK_FORMATS)}")
        if extension == DICOM_SEG:
            require_highdicom()
        self.structures = [name for segmenter in segmenters for name in segmenter.task.structures]
        if twice := {name for name in self.structures if self.structures.count(name) > 1}:
            raise BadInput("run", f"two of the runs segment the {twice.pop()}", "give one run for each structure")
        if self.output.exists() and not self.output.is_dir():
            raise BadInput(f"output={self.output.name}", "is a file", "give a folder")
        settings = {
            "runs": [
                {"run": segmenter.name, "task": segmenter.task.name, "checkpoint_sha256": segmenter.checkpoint_sha256}
                for segmenter in segmenters
            ],
            "inference": [{**segmenter.inferer.settings, "box": segmenter.box} for segmenter in segmenters],
            "consolidation_hu": consolidation_hu,
        }
        self._settings = json.loads(json.dumps(settings))  # as they come back from the manifest
        _read_manifest(self.output / MANIFEST)
        self._refuse_strange_books()
        self._attempted: set[str] = set()
        self._refused_before = _read_failures(self.output / FAILURES)
        if self.output.is_dir():
            sweep_temporaries(self.output)

    def check(self, sources: Iterable[ScanSource], given: Path | None = None, deep: bool = False) -> None:
        """Raise `BadInput`, before any work, where an output would overwrite a scan or leave the folder.

        `given`: where the scans were found, `deep`: in its sub-folders, too. Masks in there would be taken for scans
        when the same command goes on.
        """
        sources, output = list(sources), self.output.resolve()
        if given is not None and given.is_dir():
            within = deep and output.is_relative_to(given.resolve())
            if within or output == given.resolve():
                wrong = "is the folder of the scans" if not within else "lies in the folder that is searched for scans"
                raise BadInput(f"output={self.output.name}", wrong, "choose a folder beside it for the masks")
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
        """Segment one scan and write its masks and figures, unless they stand there already.

        Raises `CovidSegError`; an `OutputFault` where the next scan would fail in the same way.
        """
        self._attempted.add(source.id)
        with _memory_faults():
            return self._run(source, progress)

    def _run(self, source: ScanSource, progress: Progress | None) -> Result:
        started = time.perf_counter()
        case, files = source.id, self._files(source.id)
        if case not in _read_manifest(self.output / MANIFEST):
            self._refuse_existing(files.values())
        if source.refused:
            raise source.refused
        reading = dict(self.reading)
        if source.series_uid or reading.get("series") == ALL_SERIES:
            reading |= {"series": source.series_uid}
        scan = read_scan(source.path, **reading)
        if self.extension == DICOM_SEG and not scan.slices:
            wrong = "has no DICOM slices on its grid that a DICOM SEG could refer to"
            raise BadInput(f"case {case}", wrong, "extension=.seg.nrrd, or .nii.gz")
        request = {"input_sha256": _fingerprint(scan), **self._settings}
        with self._locked_manifest() as manifest:
            resumed = self._is_done(manifest.get(case), request, files)
            if not resumed:
                manifest[case] = {"request": request, "files": {}}  # from here on the files are ours

        if not resumed:
            masks, said = self._segment(scan, progress)
            lung, lesion = masks.get("lung"), masks.get("lesion")
            figures = quantify(lung, lesion, scan.voxels, scan.geometry, self.consolidation_hu)
            with self._locked_manifest() as manifest:  # another process may have done this scan meanwhile
                entry = manifest.get(case)
                if entry is not None and entry["request"] != request and not self.overwrite:
                    wrong = "is segmented by another process with other weights or settings"
                    raise BadInput(f"case {case}", wrong, "choose another output")
                resumed = self._is_done(entry, request, files)
        if resumed:
            page = _read_page(files["quantities"])
            notes = (*scan.notes, *(flag["text"] for flag in page.get("flags") or ()))
            return Result(case, page["figures"], notes, time.perf_counter() - started, resumed=True)

        raised = flags(Findings(figures, lung, lesion, scan.voxels, scan.geometry, scan.thickness_mm))
        notes = (*scan.notes, *said, *(flag["text"] for flag in raised))
        seconds = time.perf_counter() - started
        page = {
            "notice": NOTICE,
            "case": case,
            "source": source.below,
            "series": scan.series_uid,
            "figures": figures,
            "flags": raised,
            "explanations": NOTES,
        }
        page |= {"notes": notes, "seconds": round(seconds, 2), **self._settings}
        with _output_faults(self.output):
            for name, mask in masks.items():
                write_mask(
                    files[name],
                    mask.view(np.uint8),
                    scan.geometry,
                    overwrite=True,
                    segments={1: name},
                    slices=scan.slices,
                )
            write_json(files["quantities"], page)
        with self._locked_manifest() as manifest:
            manifest[case] = {"request": request, "files": {file.name: sha256(file) for file in files.values()}}
        return Result(case, figures, notes, seconds)

    def finish(self, failures: Mapping[str, Exception], complete: bool = True) -> None:
        """Write the table of all cases in the folder, and the list of those refused in this call.

        What another process has listed since this one began stays listed; with `complete=False`, for a call that was
        ended before its last scan, so does what an earlier call listed.
        """
        columns = (*FIGURES, "left_right_method")
        with self._locked_manifest() as manifest:
            rows = []
            for case, entry in sorted(manifest.items()):
                page = self.output / f"{case}_quantities.json"
                if entry["files"] and page.is_file():
                    content = _read_page(page)
                    figures = {name: content["figures"].get(name) for name in columns}
                    raised = " ".join(flag["key"] for flag in content.get("flags") or ())
                    read = {"source": content.get("source"), "series": content.get("series")}
                    rows.append({"case": case, **read, **figures, "flags": raised, "notice": NOTICE})
            if rows:
                write_csv(self.output / TABLE, rows, ("case", "source", "series", *columns, "flags", "notice"))
            listed = {
                case: error
                for case, error in _read_failures(self.output / FAILURES).items()
                if case not in self._attempted and not (complete and self._refused_before.get(case) == error)
            }
            listed |= {case: " ".join(str(error).split()) for case, error in failures.items()}
            if listed:
                refused = [{"case": case, "error": error} for case, error in listed.items()]
                write_csv(self.output / FAILURES, refused, ("case", "error"))
            else:
                (self.output / FAILURES).unlink(missing_ok=True)

    def _segment(self, scan: Scan, progress: Progress | None) -> tuple[dict[str, np.ndarray], list[str]]:
        """A mask of each structure, and what has to be said of how they were made."""
        masks: dict[str, np.ndarray] = {}
        said: dict[str, None] = {}
        for segmenter in self.segmenters:
            what = " and ".join(segmenter.task.structures)
            report = progress and partial(progress, what)
            grid, word = segmenter.grid_of(scan)
            classes = segmenter.segment_on(grid, scan, report)
            masks |= {name: part.in_prediction(classes) for name, part in segmenter.task.structures.items()}
            said |= {word: None} if word else {}
        return masks, list(said)

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

    def _refuse_strange_books(self) -> None:
        """Without a manifest, a table of these names is the user's."""
        if self.overwrite or os.path.lexists(self.output / MANIFEST):
            return
        for name in (TABLE, FAILURES):
            if os.path.lexists(self.output / name):
                wrong = f"stands in the output folder, and no {MANIFEST} says that this command wrote it"
                raise BadInput(name, wrong, "choose another output, or overwrite=true")

    def _stands(self, entry: Mapping[str, Any], request: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
        """Whether the manifest's entry is this very work, and its files are as they were written."""
        hashes = entry["files"]
        return (
            entry["request"] == request
            and hashes.keys() == {file.name for file in files.values()}
            and all(file.is_file() and sha256(file) == hashes[file.name] for file in files.values())
        )

    def _is_done(self, entry: Mapping[str, Any] | None, request: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
        """Whether nothing is left to do; `BadInput` where files stand that are not what this call would write."""
        if entry is not None and not self.overwrite and self._stands(entry, request, files):
            return True
        if entry is None or entry["files"] or entry["request"] != request:  # not what a killed call left unfinished
            self._refuse_existing(files.values())
        return False

    @contextmanager
    def _locked_manifest(self) -> Iterator[dict[str, dict[str, Any]]]:
        """The manifest as it stands now, with the books to ourselves; what is changed in it is written back."""
        path = self.output / MANIFEST
        with _output_faults(self.output), locked(self.output / LOCK, waiting=lambda: None):
            manifest = _read_manifest(path)
            before = dict(manifest)
            yield manifest
            if manifest != before or not path.exists():
                write_json(path, {"notice": NOTICE, "cases": manifest})


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
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


def _read_page(page: Path) -> dict[str, Any]:
    """The content of a case's JSON file."""
    try:
        return require_shape(read_json(page), {"figures": dict, "flags?": [{"key": str, "text": str}]}, page.name, "")
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(page.name, "is damaged", "overwrite=true does its case again") from error


def _read_failures(path: Path) -> dict[str, str]:
    """{case: error} of a failures.csv; nothing where there is none, or where it is something else."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return {row["case"].removeprefix("'"): row["error"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, AttributeError, csv.Error):
        return {}


@contextmanager
def _output_faults(folder: Path) -> Iterator[None]:
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


def _fingerprint(scan: Scan) -> str:
    """sha256 of the voxels as they were read and of where they lie, whatever the file is called."""
    digest = hashlib.sha256(json.dumps(scan.geometry.to_dict()).encode())
    digest.update(np.ascontiguousarray(scan.voxels).data)
    return digest.hexdigest()


@contextmanager
def _memory_faults() -> Iterator[None]:
    """Running out of memory, on the device or beside it, as one line with a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "inference.batch_size=1, inference.whole=false, device=cpu, or a machine with more"
        raise EnvironmentFault("memory", "is not enough for this scan", remedy) from error
