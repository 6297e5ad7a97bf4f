"""Public data sets fetched from their record: resumed, checked against what the record publishes, unpacked safely."""

import hashlib
import json
import logging
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any

from covidseg.scans.gate.names import is_litter
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.faults import environment_faults
from covidseg.system.files import TEMPORARY_PREFIX, fsync
from covidseg.system.locks import locked
from covidseg.system.readback import require_shape

log = logging.getLogger(__name__)

ATTEMPTS, TIMEOUT_S = 6, 60.0  # a server that sends nothing for a minute has stalled; six stalls in a row are enough
PAUSE_S = 1.0  # before the first further attempt; each next one waits twice as long
_BLOCK = 1 << 20
_MAX_RECORD = 1 << 24  # bytes of a record's description
_MAX_UNPACKED = 1 << 36  # bytes: 64 GiB, more than any archive of ours holds
_MAX_MEMBERS = 100_000
_LOCK = ".downloads.lock"
Progress = Callable[[str, int, int], None]  # (file, bytes there, bytes in all)


class _Broken(Exception):
    """The server is not there, or does not go on: worth another attempt."""


@dataclass(frozen=True)
class Record:
    """Where a data set is published: the address of its description, the archives wanted of it with their sha256."""

    url: str
    sha256: Mapping[str, str]
    doi: str
    licence: str


@dataclass(frozen=True)
class _Archive:
    name: str
    url: str
    size: int
    md5: str
    sha256: str

    @property
    def folder(self) -> str:
        """What it is unpacked into, beside the others: they hold files of the same names."""
        return PurePosixPath(self.name).stem


def fetch(record: Record, root: Path, progress: Progress = lambda name, done, size: None) -> list[str]:
    """Download and unpack the archives of a record into folders of their names under `root`; what was done.

    A folder that is there is left as it is. What a broken call has received is kept and gone on with. Raises
    `EnvironmentFault` where the server cannot be reached or does not go on, and where the disk is full; `BadInput`
    where an archive is not what the record publishes, or holds what must not be unpacked.
    """
    by_hand = f"fetch {', '.join(record.sha256)} from {record.doi} by hand, and unpack each into its own folder there"
    with environment_faults(root):
        root.mkdir(parents=True, exist_ok=True)
    with locked(root / _LOCK, waiting=lambda: log.info("another call is downloading into %s", root)):
        missing = [name for name in record.sha256 if not (root / PurePosixPath(name).stem).is_dir()]
        done = [f"{name}: {PurePosixPath(name).stem}/ is there" for name in record.sha256 if name not in missing]
        if not missing:
            return done
        published = _published(record, by_hand)
        for name in missing:
            archive = published[name]
            part = root / f".{name}.part"
            _download(archive, part, progress, by_hand)
            _require_same(archive, part)
            _unpack(archive, part, root)
            part.unlink()
            done.append(f"{name}: {archive.size / 1e6:.0f} MB, unpacked into {archive.folder}/")
    return done


def _published(record: Record, by_hand: str) -> dict[str, _Archive]:
    """What the record says of each archive that is wanted."""
    content = _described_at(record.url, by_hand)
    try:
        described = json.loads(content)
        require_shape(described, {"files": [{"key": str, "size": int, "checksum": str, "links": dict}]}, "record", "")
        files = {file["key"]: file for file in described["files"]}
        return {name: _described(files[name], sha256) for name, sha256 in record.sha256.items()}
    except (ValueError, KeyError, BadInput) as error:
        raise BadInput(record.url, "does not describe the archives of this data set", by_hand) from error


def _described_at(url: str, by_hand: str) -> bytes:
    """The record's description, asked for again where the server is not there at once."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _get(url, 0, by_hand) as answer:
                return b"".join(iter(lambda: _block(answer), b""))[:_MAX_RECORD]
        except _Broken as error:
            reason = str(error)
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
    raise EnvironmentFault(url, f"cannot be reached ({reason})", f"is there a network? or {by_hand}")


def _described(file: Mapping[str, Any], sha256: str) -> _Archive:
    md5 = file["checksum"].removeprefix("md5:")
    return _Archive(file["key"], str(file["links"]["self"]), file["size"], md5, sha256)


def _get(url: str, start: int, by_hand: str) -> HTTPResponse:
    """An answer from byte `start` on, or from the first where the server does not know how."""
    if not url.startswith(("https://", "http://")):
        raise BadInput(url, "is no web address", by_hand)
    request = urllib.request.Request(url, headers={"User-Agent": "covidseg", **_range(start)})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return answer
    except urllib.error.HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(f"{error.code} {error.reason}") from error
        raise EnvironmentFault(url, f"answers {error.code} {error.reason}", by_hand) from error
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors, a timeout is one
        raise _Broken(_reason(error)) from error


def _range(start: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-"} if start else {}


def _download(archive: _Archive, part: Path, progress: Progress, by_hand: str) -> None:
    """Fill `part` up to the published size, going on where an earlier attempt broke off."""
    attempts, wrong = 0, ""
    while (there := part.stat().st_size if part.exists() else 0) < archive.size:
        if attempts == ATTEMPTS:
            wrong = f"{wrong}; {there} of {archive.size} bytes are there"
            raise EnvironmentFault(archive.name, wrong, f"the same command goes on from there, or {by_hand}")
        if attempts:
            log.info("%s: %s, trying again", archive.name, wrong)
            time.sleep(PAUSE_S * 2 ** (attempts - 1))
        try:
            _receive(archive, part, there, progress, by_hand)
            wrong = "the server ended early"
        except _Broken as error:
            wrong = f"the server does not go on ({error})"
        attempts = 1 if part.exists() and part.stat().st_size > there else attempts + 1


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", "") or error or type(error).__name__).split())[:120]


def _receive(archive: _Archive, part: Path, there: int, progress: Progress, by_hand: str) -> None:
    with _get(archive.url, there, by_hand) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {there}-")
        there = there if resumed else 0
        with environment_faults(part), open(part, "ab" if resumed else "wb") as stream:
            while block := _block(answer):
                stream.write(block[: archive.size - there])
                there += len(block)
                progress(archive.name, min(there, archive.size), archive.size)
                if there >= archive.size:  # whatever follows is not what the record publishes
                    break


def _block(answer: HTTPResponse) -> bytes:
    """What has come, without waiting for more: what a stalled server has sent is kept."""
    try:
        return answer.read1(_BLOCK)
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _require_same(archive: _Archive, part: Path) -> None:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with environment_faults(part), open(part, "rb") as stream:
        while block := stream.read(_BLOCK):
            md5.update(block)
            sha256.update(block)
    for kind, found, wanted in (("md5", md5, archive.md5), ("sha256", sha256, archive.sha256)):
        if found.hexdigest() != wanted:
            part.unlink()
            wrong = f"has not the {kind} that is published for it; it was removed"
            raise BadInput(archive.name, wrong, "run the same command again; a proxy may have changed it")


def _unpack(archive: _Archive, part: Path, root: Path) -> None:
    """Into a temporary folder that takes its name when it is whole. Nothing may leave it, nor be a link."""
    try:
        with zipfile.ZipFile(part) as opened:
            members = _members(archive, opened)
            need, free = sum(member.file_size for _, member in members), shutil.disk_usage(root).free
            if need > free:
                wrong = f"needs {need >> 20} MiB of disk and {free >> 20} MiB are free"
                raise EnvironmentFault(archive.name, wrong, "free some space, or choose another data.root")
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=root))
            try:
                with environment_faults(root / archive.folder):
                    for path, member in members:
                        target = temporary / path
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with opened.open(member) as source, open(target, "wb") as stream:
                            shutil.copyfileobj(source, stream, _BLOCK)
                    temporary.chmod(0o755)
                    temporary.rename(root / archive.folder)
                    fsync(root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadInput(archive.name, f"is no archive that can be unpacked ({error})", "see the record") from error


def _members(archive: _Archive, opened: zipfile.ZipFile) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """(path in the folder, member) of the files; `BadInput` where one would lie outside it, or is no plain file."""
    found = []
    for member in opened.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        kind = stat.S_IFMT(member.external_attr >> 16)
        outside = path.is_absolute() or ".." in path.parts or ":" in member.filename
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            wrong = f"holds {member.filename!r}, which must not be unpacked"
            raise BadInput(archive.name, wrong, "do not use it; look at the record")
        if not member.is_dir() and not any(map(is_litter, path.parts)):
            found.append((path, member))
    if len(found) > _MAX_MEMBERS or sum(member.file_size for _, member in found) > _MAX_UNPACKED:
        raise BadInput(archive.name, "claims more than a data set holds", "do not use it; look at the record")
    inside = PurePosixPath(archive.folder)
    if found and all(path.parts[0] == inside.name and len(path.parts) > 1 for path, _ in found):
        found = [(path.relative_to(inside), member) for path, member in found]
    return found
