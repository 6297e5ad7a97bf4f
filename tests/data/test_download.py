"""Public data by one command, from a server on this machine that breaks off, stalls, lies and serves something else."""

import hashlib
import http.server
import io
import json
import os
import stat
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from covidseg.data import download
from covidseg.data.datasets.covid19_ct_seg import RECORD, Covid19CTSeg
from covidseg.data.download import Record, fetch
from covidseg.system.errors import BadInput, EnvironmentFault
from volumes import Make, small_chest


def zipped(files):
    """The bytes of an archive of {name: content}; a name may be a ZipInfo."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


class Server:
    """Serves archives; `faults` are what the next answers to a file do, one each, and `ranges` what was asked for."""

    def __init__(self, archives):
        self.archives, self.faults, self.ranges, self.knows_ranges = archives, [], [], True
        self.checksums = {name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in archives.items()}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def record(self):
        sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in self.archives.items()}
        return Record(f"{self.url}/record", sha256, "https://doi.org/10.0/x", "CC0")

    def answer(self, request):
        if request.path == "/record":
            files = [
                {"key": name, "size": len(content), "checksum": self.checksums[name],
                 "links": {"self": f"{self.url}/{name}"}}
                for name, content in self.archives.items()
            ]  # fmt: skip
            return self.send(request, 200, json.dumps({"files": files}).encode())
        content = self.archives[request.path[1:]]
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return self.send(request, fault, b"")
        body = content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header(
            "Content-Length", str({"long": 3 * len(body), "short": len(body) // 2}.get(fault, len(body)))
        )
        request.end_headers()
        part = body[: len(body) // 2] if fault in ("breaks off", "stalls") else body
        request.wfile.write(part + (b"and more" if fault == "long" else b""))
        request.wfile.flush()
        if fault == "stalls":
            time.sleep(3)
        request.close_connection = True

    @staticmethod
    def send(request, status, body):
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def serve(monkeypatch):
    """`serve({"A.zip": bytes})` -> a server; no pause between attempts, and a second without a byte is a stall."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_S", 1.0)
    servers = []

    def start(archives):
        servers.append(Server(archives))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


CONTENT = {"a.nii.gz": os.urandom(300_000), "._a.nii.gz": b"litter", "__MACOSX/x": b"litter"}


def test_archives_go_into_folders_of_their_names(serve, tmp_path):
    server = serve({"A.zip": zipped(CONTENT), "B.zip": zipped({"B/deep/b.txt": "b", "B/a.txt": "a"})})
    seen = []
    done = fetch(server.record(), tmp_path / "raw", lambda *progress: seen.append(progress))
    assert (tmp_path / "raw/A/a.nii.gz").read_bytes() == CONTENT["a.nii.gz"]
    assert (tmp_path / "raw/B/deep/b.txt").read_text() == "b"  # its own folder is not doubled
    assert {path.name for path in (tmp_path / "raw").iterdir()} == {"A", "B", ".downloads.lock"}
    assert {path.name for path in (tmp_path / "raw/A").iterdir()} == {"a.nii.gz"}
    assert done == ["A.zip: 0 MB, unpacked into A/", "B.zip: 0 MB, unpacked into B/"]
    assert seen[-1][:1] == ("B.zip",) and seen[-1][1] == seen[-1][2]
    asked = len(server.ranges)
    assert fetch(server.record(), tmp_path / "raw") == ["A.zip: A/ is there", "B.zip: B/ is there"]
    assert len(server.ranges) == asked


@pytest.mark.parametrize("fault", ["breaks off", "stalls", "long", "short", 503])
def test_a_faulty_answer_is_gone_on_with(serve, tmp_path, fault):
    server = serve({"A.zip": zipped(CONTENT)})
    server.faults = [fault, fault]
    fetch(server.record(), tmp_path)
    assert (tmp_path / "A/a.nii.gz").read_bytes() == CONTENT["a.nii.gz"]
    if fault in ("breaks off", "stalls", "short"):
        size = len(server.archives["A.zip"])
        assert server.ranges[:2] == [None, f"bytes={size // 2}-"]


def test_a_server_without_ranges_begins_again(serve, tmp_path):
    server = serve({"A.zip": zipped(CONTENT)})
    server.faults, server.knows_ranges = ["breaks off"], False
    fetch(server.record(), tmp_path)
    assert (tmp_path / "A/a.nii.gz").read_bytes() == CONTENT["a.nii.gz"]


def test_a_server_that_never_goes_on_is_given_up_and_what_came_is_kept(serve, tmp_path):
    server = serve({"A.zip": zipped(CONTENT)})
    server.faults = ["breaks off", *[503] * download.ATTEMPTS]
    with pytest.raises(
        EnvironmentFault, match=r"A\.zip: the server does not go on .*bytes are there -> the same command"
    ):
        fetch(server.record(), tmp_path)
    kept = (tmp_path / ".A.zip.part").stat().st_size
    assert kept == len(server.archives["A.zip"]) // 2 and not (tmp_path / "A").exists()
    server.ranges.clear()
    server.faults = []
    fetch(server.record(), tmp_path)
    assert server.ranges == [f"bytes={kept}-"] and (tmp_path / "A").is_dir()


def test_no_server_is_one_line(serve, tmp_path):
    server = serve({"A.zip": b""})
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(EnvironmentFault, match=r"cannot be reached .* -> is there a network\? or fetch A\.zip from"):
        fetch(server.record(), tmp_path)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_another_content_than_is_published_is_removed(serve, tmp_path, kind):
    server = serve({"A.zip": zipped(CONTENT)})
    record = server.record()
    if kind == "md5":
        server.checksums["A.zip"] = "md5:" + "0" * 32
    else:
        record = Record(record.url, {"A.zip": "0" * 64}, record.doi, record.licence)
    with pytest.raises(BadInput, match=f"A.zip: has not the {kind} that is published for it"):
        fetch(record, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".downloads.lock"}


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt", link("l")]
)
def test_an_archive_that_climbs_out_is_refused_whole(serve, tmp_path, name):
    server = serve({"A.zip": zipped({"good.txt": "good", name: "/etc/passwd"})})
    with pytest.raises(BadInput, match="which must not be unpacked"):
        fetch(server.record(), tmp_path / "raw")
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}
    assert not (tmp_path / "raw/A").exists()


def test_what_is_no_archive_and_what_is_no_record(serve, tmp_path):
    server = serve({"A.zip": b"<html>not here</html>"})
    with pytest.raises(BadInput, match="is no archive"):
        fetch(server.record(), tmp_path)
    record = server.record()
    with pytest.raises(BadInput, match="does not describe the archives"):
        fetch(Record(record.url, {"C.zip": ""}, record.doi, ""), tmp_path)
    with pytest.raises(EnvironmentFault, match="answers 404"):
        server.answer = lambda request: server.send(request, 404, b"")
        fetch(record, tmp_path)


def test_a_disk_without_room_is_told_before_anything_is_unpacked(serve, tmp_path, monkeypatch):
    server = serve({"A.zip": zipped(CONTENT)})
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr("covidseg.data.download.shutil.disk_usage", lambda path: type("U", (), {"free": 1000})())
    with pytest.raises(EnvironmentFault, match=r"needs 0 MiB of disk and 0 MiB are free"):
        fetch(server.record(), tmp_path)
    assert usage.f_bavail > 0 and (tmp_path / ".A.zip.part").exists()


def published(monkeypatch, serve):
    """A stand-in of the real record: two archives of phantoms under the published names."""
    images, masks = {}, {}
    for number in range(1, 5):
        hu, labels = small_chest(number)
        grid = Make.geometry(hu.shape, spacing_xyz=(9.0, 9.0, 8.0))
        combined = np.choose(labels, [0, 1, 3]).astype(np.uint8)
        name = f"coronacases_00{number}.nii.gz"
        with Make.folder() as folder:
            images[name] = Make.nifti(folder / "i.nii.gz", hu, grid).read_bytes()
            masks[name] = Make.nifti(folder / "m.nii.gz", combined, grid).read_bytes()
    server = serve({"COVID-19-CT-Seg_20cases.zip": zipped(images), "Lung_and_Infection_Mask.zip": zipped(masks)})
    monkeypatch.setattr(Covid19CTSeg, "published", server.record())
    return server


def test_one_command_downloads_and_prepares_and_the_next_finds_it(serve, in_process, tmp_path, monkeypatch):
    server = published(monkeypatch, serve)
    arguments = ("data=covid19_ct_seg", "data.splits.published=null", "contact_sheet=false")
    status, out, err = in_process("prepare", *arguments, "download=true")
    assert (status, err) == (0, ""), err
    assert "COVID-19-CT-Seg_20cases.zip: 0 MB, unpacked into COVID-19-CT-Seg_20cases/" in out and "4 cases" in out
    asked = len(server.ranges)
    status, out, _ = in_process("prepare", *arguments, "download=true")
    assert status == 0 and "COVID-19-CT-Seg_20cases/ is there" in out and len(server.ranges) == asked
    assert in_process("prepare", *arguments)[0] == 0


def test_data_sets_that_no_program_may_fetch_say_where_they_are(in_process, tmp_path):
    for name, where in (("mosmed", "mosmed.ai"), ("covid19_20", "grand-challenge.org")):
        status, _, err = in_process("prepare", f"data={name}", "download=true")
        assert status == 2 and where in err and "data.root=..." in err
    status, _, err = in_process("prepare", "data=phantom", "download=true")
    assert status == 2 and "nothing that is published" in err
    status, _, err = in_process("prepare", "data=covid19_ct_seg")
    assert status == 2 and "prepare.py data=... download=true" in err
    assert not list(Path(tmp_path).iterdir())
    assert set(RECORD.sha256) == {"COVID-19-CT-Seg_20cases.zip", "Lung_and_Infection_Mask.zip"}
