"""Raw scans and masks -> a prepared folder, once: checked, resampled, described, named by the hash of what made it."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from covidseg.config.build import instantiate
from covidseg.config.plain import as_dict
from covidseg.data.datasets import Listing, Source, parts
from covidseg.data.prepare import folder as building
from covidseg.data.prepare.case import CaseRequest, build_case
from covidseg.data.prepare.fingerprints import Fingerprints
from covidseg.data.prepare.options import validated
from covidseg.data.prepare.splits import RULES, Member, check_declared, make_splits, published_folds
from covidseg.data.protocol import Division
from covidseg.data.store import FORMAT, PreparedDataset
from covidseg.scans.geometry import triple
from covidseg.system.digests import code_digest, digest
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault
from covidseg.system.faults import DISK_FAULTS
from covidseg.system.terminal import show_progress
from covidseg.system.workers import default_workers, map_unordered

_PACKAGE = Path(__file__).parents[2]
_CODE = [  # what decides a case's voxels
    *(_PACKAGE / "data/prepare" / name for name in ("case.py", "grid.py")),
    *(_PACKAGE / "scans" / name for name in ("geometry.py", "read.py")),
    *sorted((_PACKAGE / "scans/gate").glob("*.py")),
]
_DISK = {*DISK_FAULTS, errno.EEXIST}


@dataclass
class Outcome:
    """What came of a preparation: case.json of the accepted cases, the refused ones, the data set if complete."""

    infos: list[dict[str, Any]]
    refused: list[tuple[str, CovidSegError]]
    notes: list[str] = field(default_factory=list)
    dataset: PreparedDataset | None = None
    folder: Path | None = None
    sides: dict[str, list[str]] = field(default_factory=dict)  # of the fixed split, where it is known: case ids
    folds: int = 0  # for cross-validation

    def complain(self, allow_refused: bool) -> None:
        """Raise for what was refused: an environment's fault always, a bad case unless that is allowed."""
        faults = [error for _, error in self.refused if isinstance(error, EnvironmentFault)]
        if faults:
            raise faults[0]
        if self.refused and not (allow_refused and self.infos):
            first = self.refused[0][1]
            if len(self.refused) == 1:
                raise first
            wrong = f"{len(self.refused)} of {len(self.refused) + len(self.infos)} cases are refused; the first: "
            where = "failures.csv lists all" if self.folder else "all are listed above"
            remedy = f"{first.remedy}; {where}; data.allow_refused=true leaves them out"
            raise BadInput("data", f"{wrong}{first.what}: {first.wrong}", remedy)


def prepare(
    data: Mapping[str, Any] | DictConfig,
    paths: Mapping[str, Any],
    admit: Callable[[Division], None] = lambda division: None,
    computing: bool = True,
) -> PreparedDataset:
    """The prepared data set of a `data` configuration, made first where it is not there.

    `computing`: whether a data set that is computed, as the phantoms are, may be written where the configuration says;
    no, where that came with a run.

    Safe to call from several processes at once: one works, the others wait and open. What a killed call finished is
    kept. `data.prepared` names a finished folder to be opened as it is, for machines without the scans.

    `admit` may refuse how the data set is divided: before hours go into its cases, and again when they are known.
    """
    options = plain(data)
    if options["prepared"]:
        dataset = PreparedDataset.open(Path(str(options["prepared"])).expanduser())
    else:
        outcome = run(options, Path(paths["data"]), admit, computing)
        outcome.complain(options["allow_refused"])
        assert outcome.dataset is not None  # or `complain` had raised
        dataset = outcome.dataset
    admit(Division.of_prepared(dataset))
    return dataset


def division(options: Mapping[str, Any]) -> Division | None:
    """How a data set is divided, no voxel read; None where that cannot be told before what is refused in it."""
    if options["prepared"]:
        return Division.of_prepared(PreparedDataset.open(Path(str(options["prepared"])).expanduser()))
    options = validated(options)
    return _divisible(listing(options), options)


def plain(data: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The `data` configuration as plain containers, interpolations resolved."""
    return as_dict(data) if OmegaConf.is_config(data) else dict(data)


def check(options: Mapping[str, Any]) -> Outcome:
    """Read and check everything as `run` does, and write nothing."""
    options = validated(options)
    found = listing(options)
    _divisible(found, options)
    infos, refused = build([_request(options, "", source, {}) for source in found.cases], options, "checking")
    outcome = Outcome(infos, [*found.refused, *refused], found.notes)
    if infos and (options["allow_refused"] or not outcome.refused):
        splits = _split(infos, _declared(found.cases), options["splits"])
        outcome.notes += splits["notes"]
        outcome.sides, outcome.folds = splits["fixed"], len(splits["folds"])
    return outcome


def run(
    options: Mapping[str, Any],
    data_dir: Path,
    admit: Callable[[Division], None] = lambda division: None,
    computing: bool = True,
) -> Outcome:
    """Check, prepare and describe all cases; the data set in the outcome is None where cases were refused.

    `admit` may refuse how they are divided before any is read.
    """
    called = time.time()
    options = validated(options)
    found = listing(options, computing)
    if foreseen := _divisible(found, options):
        admit(foreseen)
    home = data_dir / "prepared"
    with _writing(home):
        home.mkdir(parents=True, exist_ok=True)
    folder, requests, refused = _plan(options, found, home)
    lock = home / f".{folder.name}.lock"
    try:
        with _writing(home), building.exclusive(lock) as checked:
            if checked > called and (folder / "dataset.json").is_file():  # by the process this one waited for
                return opened(folder, found.notes)
            outcome = _fill(folder, requests, options, refused, found.notes)
            if outcome.dataset:
                building.stamp(lock)
            return outcome
    except EnvironmentFault:
        if os.access(home, os.W_OK) or not (folder / "dataset.json").is_file():
            raise
        return opened(folder, found.notes)  # a disk that is only read from serves what is finished


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Say what an `OSError` means for the user where it is about the disk; others are bugs and stay."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        wrong = f"cannot be written ({os.strerror(error.errno)})"
        raise EnvironmentFault(home.name, wrong, "choose another paths.data") from error


def listing(options: Mapping[str, Any], computing: bool = True) -> Listing:
    """What the configured converter finds; ids that occur twice, or differ in case only, are refused."""
    converter = instantiate(options["source"], "data", "data.source.")
    if computing and hasattr(converter, "compute"):
        converter.compute()
    found: Listing = converter.listing()
    spelled: dict[str, list[Source]] = {}
    for case in found.cases:
        spelled.setdefault(case.id.casefold(), []).append(case)
    for same in (cases for cases in spelled.values() if len(cases) > 1):
        for case in same:
            found.cases.remove(case)
            found.refuse(case.id, f"its id occurs {len(same)} times (upper and lower case are one)", "rename a file")
    if not found.cases and not found.refused:
        raise BadInput("data.root", "holds no case", f"conf/data/{options['name']}.yaml says what lies where")
    return found


def _divisible(found: Listing, options: Mapping[str, Any]) -> Division | None:
    """Refuse a division that cannot be made before hours go into its cases: sides, sites, patients, published folds.

    Where cases are missing already, only what was declared is certain, and there is no division yet.
    """
    _require_sites(options["splits"]["external_sites"], found)
    members = [Member(case.id, case.patient or case.id, case.site, case.declared) for case in found.cases]
    check_declared(members, options["splits"]["external_sites"])
    if found.refused and not (options["allow_refused"] and found.cases):
        return None
    return Division.of_sources(options["name"], found.cases, _divide(members, options["splits"]))


def _require_sites(external: Sequence[str], found: Listing) -> None:
    """A site kept apart must be somebody's: a misspelt one would leave its cases in training."""
    there = sorted({case.site for case in found.cases if case.site})
    for site in external if found.cases else ():
        if site not in {*there, *found.sites}:
            remedy = f"the sites are {', '.join(there)}" if there else "cases.csv names no site: fill its column `site`"
            raise BadInput(f"data.splits.external_sites=[{site}]", "no case is from there", remedy)


def _plan(options: Mapping[str, Any], found: Listing, home: Path) -> tuple[Path, list[CaseRequest], list]:
    """Where the data set goes, what is to be made of each case, and which cases cannot even be read."""
    hashes = Fingerprints(home / ".fingerprints.json").of(path for source in found.cases for path in source.files)
    code = code_digest(_CODE)
    requests: list[CaseRequest] = []
    refused: list[tuple[str, CovidSegError]] = list(found.refused)
    for source in found.cases:
        read = [hashes[path] for path in source.files]
        unreadable = [error for error in read if isinstance(error, CovidSegError)]
        if unreadable:
            refused.append((source.id, unreadable[0]))
        else:
            requests.append(_request(options, code, source, {path: str(hashes[path]) for path in source.files}))
    decides = {
        "format": FORMAT,
        "cases": [[request.source.id, request.key, request.source.declared] for request in requests],
        "refused": [[name, str(error)] for name, error in refused],
        "splits": {**options["splits"], "published": published_folds(options["splits"]["published"]), "rules": RULES},
    }
    folder = home / f"{options['name']}-{digest(decides)[:12]}"
    return folder, [replace(request, folder=folder) for request in requests], refused


def _request(options: Mapping[str, Any], code: str, source: Source, hashes: Mapping[Path, str]) -> CaseRequest:
    spacing = triple(float(mm) for mm in options["spacing_zyx"])
    made_of = {
        "code": code,
        "format": FORMAT,
        "who": [source.id, source.patient, source.site, list(source.notes)],
        "image": [hashes.get(path) for path in parts(source.image)],
        "masks": [
            [[hashes.get(path) for path in parts(m.path)], sorted(m.labels.items(), key=str)] for m in source.masks
        ],
        "assume": dict(source.assume or {}),
        **({"series": source.series} if source.series else {}),
        "spacing_zyx": spacing,
        "foreground_voxels": options["foreground_voxels"],
        "may_be_empty": options["may_be_empty"],
    }
    digests = {f"{path.parent.name}/{path.name}": value for path, value in hashes.items()}
    return CaseRequest(
        source, digests, digest(made_of), spacing, options["foreground_voxels"], options["may_be_empty"], folder=None
    )


def _fill(
    folder: Path, requests: list[CaseRequest], options: Mapping[str, Any], refused: list, notes: list[str]
) -> Outcome:
    """Make what is missing in `folder`, whose lock is held."""
    building.claim(folder)
    known = building.refused_before(folder)
    infos = building.standing(folder, requests, deep=options["verify"] or known is None)
    missing = [
        request for request in requests if request.source.id not in infos and request.source.id not in (known or {})
    ]
    for request in list(missing):
        if info := building.borrow(folder, options["name"], request):
            infos[request.source.id] = info
            missing.remove(request)
    made, failed = build(missing, options, f"preparing {folder.name}")
    infos |= {info["id"]: info for info in made}
    outcome = Outcome([infos[id_] for id_ in sorted(infos)], [*refused, *(known or {}).items(), *failed], list(notes))
    outcome.folder = folder
    building.list_failures(folder, outcome.refused)
    complete = not any(isinstance(error, EnvironmentFault) for _, error in outcome.refused)
    if complete and infos and (options["allow_refused"] or not outcome.refused):
        splits = _split(outcome.infos, _declared(request.source for request in requests), options["splits"])
        outcome.notes += splits["notes"]
        building.finish(folder, _index(folder, options, outcome, failed={**(known or {}), **dict(failed)}), splits)
        outcome.dataset = PreparedDataset.open(folder)
        outcome.sides, outcome.folds = splits["fixed"], len(splits["folds"])
    return outcome


def build(requests: Sequence[CaseRequest], options: Mapping[str, Any], title: str) -> tuple[list[dict], list]:
    """`build_case` for all requests, in worker processes, under a bar; (case.json of the good, the refused)."""
    if not requests:
        return [], []
    workers = default_workers(len(requests)) if options["workers"] is None else int(options["workers"])
    results = map_unordered(build_case, requests, workers, _name)
    infos, refused = [], []
    for request, result in show_progress(results, len(requests), title):
        if isinstance(result, CovidSegError):
            refused.append((request.source.id, result))
        else:
            infos.append(result)
    return sorted(infos, key=itemgetter("id")), sorted(refused, key=itemgetter(0))


def _name(request: CaseRequest) -> str:
    return f"case {request.source.id}"


def _split(infos: list[dict], declared: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    members = [
        Member(
            info["id"],
            info["patient"],
            info["site"],
            declared[info["id"]],
            "lesion" if info["volume_ml"].get("lesion") else "",
        )
        for info in infos
    ]
    return _divide(members, options)


def _divide(members: Sequence[Member], options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of splits.json; `published`: the name of the file that the folds are from."""
    file = options["published"]
    made = make_splits(members, **{**options, "published": published_folds(file)})
    return {**made, "published": file and Path(file).name}


def _declared(cases: Iterable[Source]) -> dict[str, str]:
    return {case.id: case.declared for case in cases}


def _index(folder: Path, options: Mapping[str, Any], outcome: Outcome, failed: Mapping[str, CovidSegError]) -> dict:
    return {
        "format": FORMAT,
        "name": options["name"],
        "hash": folder.name.removeprefix(f"{options['name']}-"),
        "spacing_zyx": [float(mm) for mm in options["spacing_zyx"]],
        "cases": [{key: info[key] for key in ("id", "patient", "site", "annotated")} for info in outcome.infos],
        "refused": [[name, error.what, error.wrong, error.remedy] for name, error in sorted(failed.items())],
        "notes": outcome.notes,
    }


def opened(folder: Path, notes: Sequence[str] = ()) -> Outcome:
    """A finished folder, as `run` would describe it."""
    dataset = PreparedDataset.open(folder)
    refused: list[tuple[str, CovidSegError]] = list((building.refused_before(folder) or {}).items())
    infos = [case.info for case in dataset.cases.values()]
    return Outcome(infos, refused, list(notes), dataset, folder, vars(dataset.split()), len(dataset.splits["folds"]))
