"""The prepared folder while it is written: lock, marker, what stands there already and still matches."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from covidseg.data.prepare.case import CaseRequest
from covidseg.data.store import ARRAYS, CASE, MARKER
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault
from covidseg.system.files import TEMPORARY_PREFIX, read_json, sha256, write_bytes, write_csv, write_json
from covidseg.system.locks import locked
from covidseg.system.readback import mismatch, require_shape

log = logging.getLogger(__name__)


@contextmanager
def exclusive(lock: Path) -> Iterator[float]:
    """Hold `lock`, waiting for whoever does; yields when the last holder was done with its checks (0: never)."""
    with ExitStack() as held:
        try:
            said = "waiting for another process that prepares the same data"
            held.enter_context(locked(lock, waiting=lambda: log.info(said)))
        except EnvironmentFault as fault:
            raise EnvironmentFault(lock.parent.name, fault.wrong, "choose another paths.data") from fault
        yield lock.stat().st_mtime if lock.stat().st_size else 0.0


def stamp(lock: Path) -> None:
    """Note in the lock file that everything in the folder has just been checked."""
    lock.write_text("checked\n")


def claim(folder: Path) -> None:
    """Make the folder ours, or refuse one that holds something else; remove what a killed process left in it."""
    ours = (folder / MARKER).is_file() or not os.path.lexists(folder)
    link = folder.is_symlink()  # to a finished folder elsewhere it is welcome, but nothing begins where one leads
    if not ours and (link or not all(path.name.startswith(TEMPORARY_PREFIX) for path in folder.iterdir())):
        wrong = "exists and was not made by this program"
        raise BadInput(folder.name, wrong, "move it away or choose another paths.data; nothing in it was touched")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).exists():
        write_json(folder / MARKER, {})
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):  # all of them: whoever holds the lock is the only writer
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def refused_before(folder: Path) -> dict[str, BadInput] | None:
    """The cases that a finished folder was made without, and why; None where it is not finished."""
    try:
        refused = read_json(folder / "dataset.json")["refused"]
        require_shape(refused, [[str, str, str, str]], folder.name, "")
        return {name: BadInput(what, wrong, remedy) for name, what, wrong, remedy in refused}
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return None


def standing(folder: Path, requests: Sequence[CaseRequest], deep: bool) -> dict[str, dict[str, Any]]:
    """case.json of every case in `folder` that was made from the same request; `deep`: and matches its checksums.

    Others are discarded, with a warning.
    """
    digests = _case_digests(folder)

    def check(request: CaseRequest) -> tuple[dict[str, Any] | None, str]:
        place = folder / request.source.id
        if not place.exists():
            return None, ""
        info, wrong = read_case(place, deep, digests.get(request.source.id))
        return (info, "") if info and info["key"] == request.key else (None, wrong or "was made from something else")

    with ThreadPoolExecutor() as threads:
        found = dict(zip((request.source.id for request in requests), threads.map(check, requests), strict=True))
    for case, (_, wrong) in found.items():
        if wrong:
            log.warning("case %s: %s, it is made again", case, wrong)
            discard(folder / case)
    return {case: info for case, (info, _) in found.items() if info}


def read_case(place: Path, deep: bool, digest: str | None) -> tuple[dict[str, Any] | None, str]:
    """case.json of a prepared case, or what is wrong with the case; `digest` is that of case.json, where known."""
    try:
        if digest not in (None, sha256(place / "case.json")):
            return None, "case.json does not match its checksum"
        info = read_json(place / "case.json")
        if wrong := mismatch(info, CASE):
            return None, f"case.json is not that of a case ({wrong})"
        info["key"]
        for name in ARRAYS:
            if (place / name).is_symlink() or not (place / name).is_file():
                return None, f"{name} is missing"
            if deep and sha256(place / name) != info["sha256"][name]:
                return None, f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"case.json is damaged ({type(error).__name__})"
    return info, ""


def discard(place: Path) -> None:
    """Take a case folder out of sight at once, then delete it."""
    aside = place.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{place.name}")
    os.rename(place, aside)
    shutil.rmtree(aside)


def borrow(folder: Path, name: str, request: CaseRequest) -> dict[str, Any] | None:
    """Take a case that another version of the data set holds and that this one would make again, bit by bit."""
    for place in sorted(folder.parent.glob(f"{name}-*/{request.source.id}")):
        if place.parent == folder or not (place.parent / MARKER).is_file():
            continue
        digest = _case_digests(place.parent).get(request.source.id)
        info, _ = read_case(place, False, digest)
        if info and info["key"] == request.key and (info := read_case(place, True, digest)[0]):
            aside = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{request.source.id}"
            aside.mkdir()
            for file in (*ARRAYS, "case.json"):
                _link(place / file, aside / file)
            os.rename(aside, folder / request.source.id)
            return info
    return None


def reason(case: str, error: CovidSegError) -> str:
    """What is wrong, with the file where that is not the case itself: one of several may be meant."""
    return error.wrong if error.what == f"case {case}" else f"{error.what}: {error.wrong}"


def list_failures(folder: Path, refused: Sequence[tuple[str, CovidSegError]]) -> None:
    """failures.csv: one line for each refused case, or no file."""
    if refused:
        rows = [{"case": name, "wrong": reason(name, error), "remedy": error.remedy} for name, error in refused]
        write_csv(folder / "failures.csv", rows, ("case", "wrong", "remedy"))
    else:
        (folder / "failures.csv").unlink(missing_ok=True)


def finish(folder: Path, index: dict[str, Any], splits: Mapping[str, Any]) -> None:
    """Write the folder's own files; dataset.json last, as its presence says that the folder is complete."""
    rows = index["cases"]
    for row in rows:
        row["sha256"] = sha256(folder / row["id"] / "case.json")
    content = {"splits.json": _text(splits), "dataset.json": _text(index)}
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
    standing = all((folder / name).is_file() and (folder / name).read_bytes() == text for name, text in content.items())
    if standing and _marked(folder) == digests:
        return
    (folder / "dataset.json").unlink(missing_ok=True)
    write_bytes(folder / "splits.json", content["splits.json"])
    write_json(folder / MARKER, digests)
    write_bytes(folder / "dataset.json", content["dataset.json"])


def _marked(folder: Path) -> Any:
    """The checksums in the marker; None where it is damaged."""
    try:
        return read_json(folder / MARKER)
    except (OSError, ValueError):
        return None


def _case_digests(folder: Path) -> dict[str, str]:
    """Case -> sha256 of its case.json, from a finished folder's dataset.json; empty where there is none."""
    try:
        rows = read_json(folder / "dataset.json")["cases"]
        require_shape(rows, [{"id": str, "sha256": str}], folder.name, "")
        return {row["id"]: row["sha256"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return {}


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
