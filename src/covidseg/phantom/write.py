"""A folder of phantoms, laid out like anybody's data set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.phantom.make import make_phantom
from covidseg.scans.geometry import Geometry, triple
from covidseg.system.digests import code_digest, digest
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault
from covidseg.system.files import atomic_path, sweep_temporaries, write_csv
from covidseg.system.locks import locked
from covidseg.system.terminal import show_progress
from covidseg.system.workers import default_workers, map_unordered

SMALLEST = (34, 48, 48)  # voxels over a large patient, none wider than 10 mm
log = logging.getLogger(__name__)
COLUMNS = ("case", "patient", "site", "split")


@dataclass(frozen=True)
class Job:
    """One phantom to be written."""

    folder: Path
    name: str
    seed: int
    shape_zyx: tuple[int, int, int]
    patient: int
    scan: int
    lesions: bool
    thin: bool
    site: str


def write_phantoms(
    folder: Path | str,
    count: int,
    shape_zyx: Sequence[int],
    seed: int,
    *,
    thin: bool,
    lesion_free: float,
    second_scans: float,
    other_site: float,
    workers: int | None = None,
) -> None:
    """Write `count` phantoms of at most `shape_zyx` voxels into `folder`; those that are there already stay.

    Shares of the patients: `lesion_free` have no lesion, `second_scans` come twice (two cases, one patient),
    `other_site` come from site B, whose scanner is another one. `thin`: slice thickness from 0.6 to 8 mm, where thin
    slices cover a slab; otherwise the whole lungs in as many slices as there are. Several processes may call it.
    """
    if any(int(n) < least for n, least in zip(shape_zyx, SMALLEST, strict=True)):
        wrong = "gives voxels larger than 10 mm, which no CT has"
        raise BadInput(f"data.source.shape_zyx={list(shape_zyx)}", wrong, f"at least {list(SMALLEST)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(folder, count, triple(map(int, shape_zyx)), seed, thin, lesion_free, second_scans, other_site)
    said = "waiting for another process that computes the same phantoms"
    with locked(folder / ".lock", waiting=lambda: log.info(said)):
        for kind in ("images", "lungs", "lesions"):
            sweep_temporaries(folder / kind)
        # the image is written last: where it stands, the case is complete
        missing = [job for job in jobs if not (folder / "images" / f"{job.name}.nii.gz").is_file()]
        workers = default_workers(len(missing)) if workers is None else workers
        written = map_unordered(_write, missing, workers, _name)
        for _, result in show_progress(written, len(missing), "computing phantoms"):
            if isinstance(result, CovidSegError):
                raise result
        rows = [{"case": job.name, "patient": f"p{job.patient:03d}", "site": job.site, "split": ""} for job in jobs]
        if not (folder / "cases.csv").is_file():
            write_csv(folder / "cases.csv", rows, COLUMNS)


def phantom_hash(options: dict[str, Any]) -> str:
    """Hash of the options of `write_phantoms` and of the code that computes the voxels."""
    return digest([options, code_digest(sorted(Path(__file__).parent.glob("*.py")))])[:12]


def _jobs(
    folder: Path,
    count: int,
    shape_zyx: tuple[int, int, int],
    seed: int,
    thin: bool,
    lesion_free: float,
    second_scans: float,
    other_site: float,
) -> list[Job]:
    """Who gets how many scans: shares of the patients are met exactly up to rounding, whatever the seed."""
    patients = max(1, round(count / (1 + second_scans)))
    draw = np.random.default_rng((seed, 0))
    order = draw.permutation(patients)
    healthy = set(order[: round(lesion_free * patients)])
    away = set(draw.permutation(patients)[: round(other_site * patients)])
    twice = [*range(patients), *draw.permutation(patients)][:count]  # the first `count - patients` come again
    jobs: list[Job] = []
    for index, patient in enumerate(sorted(map(int, twice))):
        scan = int(bool(jobs) and jobs[-1].patient == patient)
        site = "B" if patient in away else "A"
        name = f"phantom_{index:03d}"
        jobs.append(Job(folder, name, seed, shape_zyx, patient, scan, patient not in healthy, thin, site))
    return jobs


def _write(job: Job) -> None:
    """Compute one phantom and write its files; each takes its name only when it reads back as it was meant."""
    import SimpleITK

    from covidseg.scans.read import read_scan
    from covidseg.scans.write import to_sitk, write_mask

    made = make_phantom(
        job.seed,
        job.shape_zyx,
        patient=job.patient,
        scan=job.scan,
        lesions=job.lesions,
        thin=job.thin,
        other_site=job.site == "B",
    )
    file = f"{job.name}.nii.gz"
    geometry = Geometry(made.hu.shape, made.spacing_zyx, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    for kind, mask in (("lungs", made.labels > 0), ("lesions", made.labels == 2)):
        write_mask(job.folder / kind / file, mask.astype(np.uint8), geometry, overwrite=True)
    with atomic_path(job.folder / "images" / file, ".nii.gz") as temporary:
        SimpleITK.WriteImage(to_sitk(made.hu, geometry), str(temporary), useCompression=True, compressionLevel=1)
        try:
            same = np.array_equal(read_scan(temporary).voxels, made.hu)
        except BadInput:  # a full disk leaves half a file, and the writer does not say so
            same = False
        if not same:
            raise EnvironmentFault(file, "could not be written whole", "free some space or choose another paths.data")


def _name(job: Job) -> str:
    return job.name
