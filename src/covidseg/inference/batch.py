"""Masks and figures for scans that have none yet: one scan or thousands, resumable, by a manifest instead of trust.

An output folder holds `<case>_<structure>.nii.gz` and `<case>_quantities.json` for each case, on request
`<case>_<structure>_probability.nii.gz` and `<case>_report.html`, `quantities.csv` for all of them, `predictions.json`
(the manifest) and `failures.csv` (what was refused). A case counts as done when the manifest says so for the very same
voxels, weights and settings and its files still have their hashes; a name proves nothing. Several processes may share a
folder: the manifest is read and written back under a lock.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from covidseg.data.prepare.grid import Grid
from covidseg.evaluation.flags import Findings, flags
from covidseg.inference.output_folder import (
    fingerprint,
    memory_faults,
    output_faults,
    read_failures,
    read_manifest,
    read_page,
)
from covidseg.inference.quantify import FIGURES, NOTES, NOTICE, quantify
from covidseg.inference.segmenter import Segmenter
from covidseg.scans.read import ALL_SERIES, Scan, ScanSource, read_scan
from covidseg.scans.write import DICOM_SEG, MASK_FORMATS, SLICER_SEG, write_mask, write_probability
from covidseg.scans.write_dicom import require_highdicom
from covidseg.system.errors import BadInput
from covidseg.system.files import sha256, sweep_temporaries, write_csv, write_json, write_text
from covidseg.system.locks import locked

MANIFEST, FAILURES, TABLE, LOCK = "predictions.json", "failures.csv", "quantities.csv", ".predictions.lock"
_OF_PROBABILITIES = {SLICER_SEG: ".nrrd", DICOM_SEG: ".nii.gz"}  # formats that hold labels alone
Progress = Callable[[str, int, int], None]  # (what is segmented, windows done, windows in all)


@dataclass(frozen=True)
class Result:
    """One scan's figures, what was noticed on the way, how long it took, and whether it was done before."""

    case: str
    figures: Mapping[str, Any]
    notes: Sequence[str]
    seconds: float
    resumed: bool = False


@dataclass(frozen=True)
class Opened:
    """A scan that was read: what it is, what is asked of it, and how long that took."""

    source: ScanSource
    scan: Scan
    request: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Segmented:
    """A scan with the masks of its structures; without them where they stand on disk already (`resumed`)."""

    opened: Opened
    masks: Mapping[str, np.ndarray]
    figures: Mapping[str, Any]
    said: Sequence[str]
    seconds: float
    resumed: bool = False
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)


class Predictor:
    """Applies trained runs to scans, and keeps the books of one output folder.

    `reading`: arguments of `read_scan`; `report`: makes the HTML page of a scan and what was noted of it, None: no page
    is asked for. Raises `BadInput` where two runs segment the same structure, for a
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
        probabilities: bool = False,
        report: Callable[["Segmented", Sequence[str]], str] | None = None,
    ):
        if not segmenters:
            raise BadInput("run", "there is none", "give a run folder")
        if type(consolidation_hu) not in (int, float) or not math.isfinite(consolidation_hu):
            raise BadInput(f"consolidation_hu={consolidation_hu}", "is no number of HU", "consolidation_hu=-300")
        self.segmenters, self.output, self.overwrite = segmenters, Path(output), overwrite
        self.extension, self.consolidation_hu, self.reading = extension, consolidation_hu, reading or {}
        self.probabilities, self.report = probabilities, report
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
            "runs": [segmenter.identity for segmenter in segmenters],
            "inference": [{**segmenter.settings, "box": segmenter.box} for segmenter in segmenters],
            "consolidation_hu": consolidation_hu,
        }
        self._settings = json.loads(json.dumps(settings))  # as they come back from the manifest
        read_manifest(self.output / MANIFEST)
        self._refuse_strange_books()
        self._attempted: set[str] = set()
        self._refused_before = read_failures(self.output / FAILURES)
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

    @property
    def has_begun(self) -> bool:
        """Whether any call worked on a scan in this output folder."""
        return (self.output / MANIFEST).is_file()

    def run(self, source: ScanSource, progress: Progress | None = None) -> Result:
        """Segment one scan and write its masks and figures, unless they stand there already.

        Raises `CovidSegError`; an `OutputFault` where the next scan would fail in the same way.
        """
        return self.write(self.segment(self.read(source), progress))

    def read(self, source: ScanSource) -> Opened:
        """The first step of `run`: the scan in memory, known by its voxels. Writes nothing."""
        self._attempted.add(source.id)
        started, case, files = time.perf_counter(), source.id, self._files(source.id)
        with memory_faults():
            if case not in read_manifest(self.output / MANIFEST):
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
            request = {"input_sha256": fingerprint(scan), **self._settings}
        return Opened(source, scan, request, time.perf_counter() - started)

    def segment(self, opened: Opened, progress: Progress | None = None) -> Segmented:
        """The second step: claims the case in the manifest, and applies the networks, unless it stands there."""
        started, case, files = time.perf_counter(), opened.source.id, self._files(opened.source.id)
        scan, request = opened.scan, opened.request
        with memory_faults():
            with self._locked_manifest() as manifest:
                resumed = self._is_done(manifest.get(case), request, files)
                if not resumed:
                    manifest[case] = {"request": request, "files": {}}  # from here on the files are ours
            if resumed:
                return Segmented(opened, {}, {}, (), time.perf_counter() - started, resumed=True)
            masks, probabilities, said = self._segment(scan, progress)
            lung, lesion = masks.get("lung"), masks.get("lesion")
            figures = quantify(lung, lesion, scan.voxels, scan.geometry, self.consolidation_hu)
        return Segmented(opened, masks, figures, said, time.perf_counter() - started, probabilities=probabilities)

    def write(self, segmented: Segmented) -> Result:
        """The last step: masks and figures on disk, and in the manifest."""
        started, opened = time.perf_counter(), segmented.opened
        case, scan, request, files = opened.source.id, opened.scan, opened.request, self._files(opened.source.id)
        resumed, masks = segmented.resumed, segmented.masks
        with memory_faults():
            if not resumed:
                with self._locked_manifest() as manifest:  # another process may have done this scan meanwhile
                    entry = manifest.get(case)
                    if entry is not None and entry["request"] != request and not self.overwrite:
                        wrong = "is segmented by another process with other weights or settings"
                        raise BadInput(f"case {case}", wrong, "choose another output")
                    resumed = self._is_done(entry, request, files)
            spent = opened.seconds + segmented.seconds
            if resumed:
                page = read_page(files["quantities"])
                notes = (*scan.notes, *(flag["text"] for flag in page.get("flags") or ()))
                return Result(case, page["figures"], notes, spent + time.perf_counter() - started, resumed=True)
            findings = Findings(
                segmented.figures, masks.get("lung"), masks.get("lesion"), scan.voxels, scan.geometry, scan.thickness_mm
            )
            raised = flags(findings)
            notes = (*scan.notes, *segmented.said, *(flag["text"] for flag in raised))
            page = {
                "notice": NOTICE,
                "case": case,
                "source": opened.source.below,
                "series": scan.series_uid,
                "figures": segmented.figures,
                "flags": raised,
                "explanations": NOTES,
                "notes": notes,
                "seconds": round(spent, 2),
                **self._settings,
            }
            with output_faults(self.output):
                for name, mask in masks.items():
                    write_mask(
                        files[name],
                        mask.view(np.uint8),
                        scan.geometry,
                        overwrite=True,
                        segments={1: name},
                        slices=scan.slices,
                    )
                for name, probability in segmented.probabilities.items():
                    write_probability(files[f"{name}_probability"], probability, scan.geometry, overwrite=True)
                if self.report:
                    write_text(files["report"], self.report(segmented, notes))
                write_json(files["quantities"], page)
            with self._locked_manifest() as manifest:
                manifest[case] = {"request": request, "files": {file.name: sha256(file) for file in files.values()}}
        return Result(case, segmented.figures, notes, spent + time.perf_counter() - started)

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
                    content = read_page(page)
                    figures = {name: content["figures"].get(name) for name in columns}
                    raised = " ".join(flag["key"] for flag in content.get("flags") or ())
                    read = {"source": content.get("source"), "series": content.get("series")}
                    rows.append({"case": case, **read, **figures, "flags": raised, "notice": NOTICE})
            if rows:
                write_csv(self.output / TABLE, rows, ("case", "source", "series", *columns, "flags", "notice"))
            listed = {
                case: error
                for case, error in read_failures(self.output / FAILURES).items()
                if case not in self._attempted and not (complete and self._refused_before.get(case) == error)
            }
            listed |= {case: " ".join(str(error).split()) for case, error in failures.items()}
            if listed:
                refused = [{"case": case, "error": error} for case, error in listed.items()]
                write_csv(self.output / FAILURES, refused, ("case", "error"))
            else:
                (self.output / FAILURES).unlink(missing_ok=True)

    def _segment(
        self, scan: Scan, progress: Progress | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
        """A mask of each structure, their probabilities where asked for, and what has to be said of how it was done."""
        masks: dict[str, np.ndarray] = {}
        probabilities: dict[str, np.ndarray] = {}
        said: dict[str, None] = {}
        for segmenter in self.segmenters:
            what = " and ".join(segmenter.task.structures)
            report = progress and partial(progress, what)
            grid, word = segmenter.grid_of(scan)
            watch = partial(_keep, probabilities, segmenter, grid) if self.probabilities else None
            classes = segmenter.segment_on(grid, scan, report, watch)
            masks |= {name: part.in_prediction(classes) for name, part in segmenter.task.structures.items()}
            said |= {word: None} if word else {}
        return masks, probabilities, list(said)

    def _files(self, case: str) -> dict[str, Path]:
        masks = {name: self.output / f"{case}_{name}{self.extension}" for name in self.structures}
        suffix = _OF_PROBABILITIES.get(self.extension, self.extension)
        names = self.structures if self.probabilities else ()
        maps = {f"{name}_probability": self.output / f"{case}_{name}_probability{suffix}" for name in names}
        pages = {"report": self.output / f"{case}_report.html"} if self.report else {}
        return {**masks, **maps, **pages, "quantities": self.output / f"{case}_quantities.json"}

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
        with output_faults(self.output), locked(self.output / LOCK, waiting=lambda: None):
            manifest = read_manifest(path)
            before = dict(manifest)
            yield manifest
            if manifest != before or not path.exists():
                write_json(path, {"notice": NOTICE, "cases": manifest})


def _keep(kept: dict[str, np.ndarray], segmenter: Segmenter, grid: Grid, scores: Tensor) -> None:
    """Add to `kept` the probability of each structure of the segmenter's task."""
    kept |= segmenter.probabilities(grid, scores)
