"""Preparation: what it writes, that it is never stale or half, and FAULTS rows C6 to C8 and E1 to E7."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.data.prepare import run as preparation
from covidseg.data.prepare.run import prepare
from covidseg.data.store import ARRAYS, MARKER, PreparedDataset
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.files import sha256
from covidseg.system.workers import map_unordered

PROGRAM = """
import json, sys
from covidseg.data.prepare.run import prepare
options, paths = json.loads(sys.argv[1])
print(prepare(options, paths).folder)
"""


def contents(folder):
    """Relative path -> sha256 of every file of a prepared folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(options, paths, *prefix):
    """`prepare` in a fresh process."""
    command = [*prefix, sys.executable, "-c", PROGRAM, json.dumps([options, paths])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_private_mounts(script, *arguments):
    """Run a Python script where it may mount; skips where that is not allowed."""
    prefix = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this environment allows no private mounts (unshare -m)")
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "mount:" in done.stderr:
        pytest.skip(f"this environment allows no mounts: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def paths(tmp_path):
    return {"data": str(tmp_path / "data")}


@pytest.fixture
def finished(make_folder, data_config, paths):
    """(configuration, paths, data set) of three prepared cases."""
    config = data_config(make_folder())
    return config, paths, prepare(config, paths)


def test_a_prepared_case_is_what_it_says(make_folder, data_config, paths):
    root = make_folder(["a", "b", "c"], csv="case,patient,site,split\na,p1,A,\nb,p2,A,test\nc,p3,B,\n")
    dataset = prepare(data_config(root, "data.splits.external_sites=[B]", "data.foreground_voxels=20"), paths)
    assert dataset.name == "folder" and dataset.spacing_zyx == (9.0, 9.0, 9.0)
    assert dataset.split().test == ["b"] and dataset.split().external == ["c"] and dataset.split().train == ["a"]
    case = dataset.cases["a"]
    assert (case.id, case.patient, case.site, case.annotated) == ("a", "p1", "A", ("lung", "lesion"))
    assert isinstance(case.image, np.memmap) and case.image.dtype == np.int16 and not case.image.flags.writeable
    assert isinstance(case.mask, np.memmap) and case.mask.dtype == np.uint8
    assert case.image.shape == case.mask.shape == case.grid.shape_zyx
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "lungs/a.nii.gz")))
    lesions = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "lesions/a.nii.gz")))
    assert np.array_equal(case.reference(), lungs + lesions)
    scan = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "images/a.nii.gz")))
    assert np.array_equal(case.image, case.grid.image(scan)) and np.array_equal(
        case.mask, case.grid.labels(lungs + lesions)
    )
    for name, value in (("lung", 1), ("lesion", 2)):
        points = case.foreground[name]
        assert points.dtype == np.int32 and 0 < len(points) <= 20
        assert len(np.unique(points, axis=0)) == len(points) and (case.mask[tuple(points.T)] == value).all()
    sums = {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in case.info["sources"]}
    assert case.info["sources"] == sums and set(sums) == {"images/a.nii.gz", "lungs/a.nii.gz", "lesions/a.nii.gz"}
    assert case.info["volume_ml"]["lesion"] == pytest.approx(lesions.sum() * 0.648)


def test_p9_no_path_of_this_machine_is_in_a_shared_file(finished, tmp_path):
    *_, dataset = finished
    for path in dataset.folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    private = dataset.folder.parent / ".fingerprints.json"
    assert private.stat().st_mode & 0o077 == 0


def test_opening_again_computes_nothing(finished, monkeypatch):
    config, paths, dataset = finished
    before = {path: path.stat().st_mtime_ns for path in dataset.folder.rglob("*")}
    monkeypatch.setattr(preparation, "build_case", None)
    monkeypatch.setattr("covidseg.data.prepare.fingerprints.sha256", None)  # nor are the sources read again
    assert prepare(config, paths).folder == dataset.folder
    assert {path: path.stat().st_mtime_ns for path in dataset.folder.rglob("*")} == before


def test_a_finished_folder_opens_without_scans_and_without_simpleitk(finished):
    *_, dataset = finished
    program = (
        "import sys; sys.modules['SimpleITK'] = None\n"
        "from covidseg.data.prepare.run import prepare\n"
        "d = prepare({'prepared': sys.argv[1]}, {})\n"
        "print(sum(c.mask.sum() for c in d.cases.values()), d.split().train)"
    )
    done = subprocess.run([sys.executable, "-c", program, dataset.folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_workers_and_this_process_write_the_same_bytes(finished, tmp_path):
    config, _, dataset = finished
    other = prepare({**config, "workers": 2}, {"data": str(tmp_path / "other")})
    assert contents(other.folder) == contents(dataset.folder)


# E: cache


MOMENTS = {
    "folder made": lambda folder: folder.exists(),
    "case begun": lambda folder: any(path.is_dir() for path in folder.glob(".tmp-*")),
    "case written": lambda folder: (folder / "a").exists() or (folder / "b").exists(),
    "splits written": lambda folder: (folder / "splits.json").exists(),
}


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        pytest.param("folder made", 0, marks=pytest.mark.slow),
        ("case begun", 2),
        pytest.param("case written", 0, marks=pytest.mark.slow),
        pytest.param("case written", 2, marks=pytest.mark.slow),
        pytest.param("splits written", 0, marks=pytest.mark.slow),
    ],
)
def test_e1_killed_at_any_moment_then_finished_as_if_nothing_had_been(finished, tmp_path, moment, workers):
    config, _, dataset = finished
    paths = {"data": str(tmp_path / "killed")}
    folder = Path(paths["data"]) / "prepared" / dataset.folder.name
    process = start({**config, "workers": workers}, paths)
    deadline = time.monotonic() + 60
    while not MOMENTS[moment](folder) and process.poll() is None and time.monotonic() < deadline:
        pass
    process.kill()
    process.communicate()
    left = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".tmp-")]
    for case in left:  # whatever has its final name is whole
        assert {path.name for path in case.iterdir()} == {*ARRAYS, "case.json"}
    if not (folder / "dataset.json").exists():
        with pytest.raises(BadInput):
            PreparedDataset.open(folder)
    assert contents(prepare(config, paths).folder) == contents(dataset.folder)


DISK_FULL = """
import json, os, subprocess, sys
from pathlib import Path
from covidseg.data.prepare.run import prepare
from covidseg.system.errors import EnvironmentFault
options, paths = json.loads(sys.argv[1])
Path(paths["data"]).mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}", "none", paths["data"]], check=True)
if sys.argv[3] == "surprised":
    import covidseg.data.prepare.case as case
    case.SPARE_BYTES = -10**9
try:
    prepare(options, paths)
    print("no error")
except EnvironmentFault as error:
    print(error)
folder = next(Path(paths["data"]).glob("prepared/folder-*"))
print(sorted(path.name for path in folder.iterdir() if path.name.startswith(".tmp-")))
for case in folder.glob("[a-z]*/case.json"):
    assert len(list(case.parent.iterdir())) == 4
subprocess.run(["mount", "-o", "remount,size=300m", paths["data"]], check=True)
print(len(prepare(options, paths).cases))
"""


@pytest.mark.parametrize(
    ("size", "mood"), [pytest.param("2m", "checked", marks=pytest.mark.slow), ("120k", "surprised")]
)
def test_e2_disk_full_names_what_is_missing_and_the_next_start_completes(make_folder, data_config, paths, size, mood):
    config = data_config(make_folder(), "data.spacing_zyx=[6,6,6]")
    error, left, cases = in_private_mounts(DISK_FULL, json.dumps([config, paths]), size, mood).splitlines()
    assert (
        ("MiB of disk" in error and "free" in error) if mood == "checked" else ("full" in error or "No space" in error)
    )
    assert "-> " in error and left == "[]" and cases == "3"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", [*ARRAYS, "case.json"])
def test_e3_damaged_entry_is_refused_when_used_and_rebuilt_when_prepared(finished, caplog, damage, name):
    config, paths, dataset = finished
    before = contents(dataset.folder)
    damage(dataset.folder / "b" / name)
    case = PreparedDataset.open(dataset.folder).cases["b"]
    with pytest.raises(BadInput, match=r"case b: .* -> "):
        case.verify()
    again = prepare(config, paths)
    assert contents(again.folder) == before
    assert "case b" in caplog.text and "made again" in caplog.text
    again.cases["b"].verify()


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["dataset.json", "splits.json"])
def test_e3_damaged_or_edited_index_is_refused_and_rebuilt(finished, damage, name):
    config, paths, dataset = finished
    before = contents(dataset.folder)
    damage(dataset.folder / name)
    with pytest.raises(BadInput):
        PreparedDataset.open(dataset.folder)
    assert contents(prepare(config, paths).folder) == before


def test_e4_replaced_source_of_same_size_and_time_is_another_folder(finished, make_folder):
    config, paths, dataset = finished
    image = Path(config["source"]["root"]) / "images" / "b.nii.gz"
    old = image.stat()
    data = sitk.ReadImage(str(image))
    sitk.WriteImage(sitk.ShiftScale(data, 1.0), str(image), useCompression=True)
    padding = old.st_size - image.stat().st_size
    os.utime(image, ns=(old.st_atime_ns, old.st_mtime_ns))
    again = prepare(config, paths)
    assert again.folder != dataset.folder, padding
    assert not np.array_equal(again.cases["b"].image, dataset.cases["b"].image)
    # what did not change is shared with the older folder
    assert (again.folder / "a/image.npy").stat().st_ino == (dataset.folder / "a/image.npy").stat().st_ino
    assert contents(dataset.folder) and dataset.cases["b"].verify() is None


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_e4_replaced_voxels_beside_their_header_are_another_folder(
    make_folder, data_config, paths, write_volume, small_chest, suffix
):
    root = make_folder()
    config = data_config(root)
    for kind, seen in (("images", small_chest(1)[0]), ("lesions", (small_chest(1)[1] == 2).astype(np.uint8))):
        (root / kind / "b.nii.gz").unlink()
        write_volume(root / kind / f"b{suffix}", seen)
    before = preparation.run(config, Path(paths["data"]))
    assert not before.notes  # the data files are no foreign files
    assert {"images/b.raw", f"images/b{suffix}"} <= set(before.dataset.cases["b"].info["sources"])
    raw = root / "images" / "b.raw"
    raw.write_bytes((np.frombuffer(raw.read_bytes(), np.int16) + np.int16(2)).tobytes())
    image = prepare(config, paths)
    assert image.folder != before.folder
    assert not np.array_equal(image.cases["b"].image, before.dataset.cases["b"].image)
    raw = root / "lesions" / "b.raw"
    raw.write_bytes(np.roll(np.frombuffer(raw.read_bytes(), np.uint8).reshape(16, 28, 32), 1, axis=1).tobytes())
    mask = prepare(config, paths)
    assert len({before.folder, image.folder, mask.folder}) == 3
    assert prepare(config, paths).folder == mask.folder
    (root / "images" / "c.raw").write_bytes(b"nobody's")
    assert preparation.check(config).notes == ["1 hidden or foreign files passed over"]


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_zyx": [9, 9, 8]},
        {"foreground_voxels": 7},
        {"splits": {"seed": 1, "test_fraction": 0.4, "validation_fraction": 0.1, "folds": 0, "published": None}},
        "code",
    ],
    ids=["spacing", "foreground", "splits", "code"],
)
def test_e4_changed_option_or_code_is_another_folder(finished, change, monkeypatch):
    config, paths, dataset = finished
    if change == "code":
        monkeypatch.setattr(preparation, "_CODE", [*preparation._CODE, Path(__file__)])
        change = {}
    again = prepare({**config, **change}, paths)
    assert again.folder != dataset.folder
    assert PreparedDataset.open(dataset.folder).hash == dataset.hash  # the old one still stands


def test_options_that_change_no_voxel_keep_the_folder(finished):
    config, paths, dataset = finished
    for change in ({"workers": 1}, {"verify": False}, {"window": [-1000, 0]}, {"allow_refused": True}):
        assert prepare({**config, **change}, paths).folder == dataset.folder


def test_e5_many_at_once_build_each_case_once(make_folder, data_config, paths, monkeypatch):
    config, built = data_config(make_folder()), []
    real = preparation.build_case
    monkeypatch.setattr(preparation, "build_case", lambda order: built.append(order.source.id) or real(order))
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(prepare(config, paths).folder)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(folders) == 6 and len(set(folders)) == 1
    assert sorted(built) == ["a", "b", "c"]


@pytest.mark.slow
def test_e5_six_processes_at_once(finished, tmp_path):
    config, _, dataset = finished
    paths = {"data": str(tmp_path / "shared")}
    processes = [start({**config, "workers": 2}, paths) for _ in range(6)]
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outcomes
    assert len({out for out, _ in outcomes}) == 1
    assert contents(Path(outcomes[0][0].strip())) == contents(dataset.folder)


@pytest.mark.slow
def test_e5_lock_of_a_dead_process_holds_nobody_up(make_folder, data_config, paths):
    config = data_config(make_folder())
    process = start(config, paths)
    folder = Path(paths["data"]) / "prepared"
    deadline = time.monotonic() + 60
    while not list(folder.glob(".folder-*.lock")) and process.poll() is None and time.monotonic() < deadline:
        pass
    process.kill()
    process.communicate()
    assert list(folder.glob(".folder-*.lock"))
    assert len(prepare(config, paths).cases) == 3


def test_e6_folder_of_somebody_else_is_refused_and_untouched(finished, tmp_path):
    config, _, dataset = finished
    paths = {"data": str(tmp_path / "theirs")}
    folder = Path(paths["data"]) / "prepared" / dataset.folder.name
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="was not made by this program"):
        prepare(config, paths)
    assert contents(folder) == {"a/thesis.txt": hashlib.sha256(b"mine").hexdigest()}


def test_e6_symlinked_folder_works(finished, tmp_path):
    config, paths, dataset = finished
    elsewhere = dataset.folder.rename(tmp_path / "elsewhere")
    dataset.folder.symlink_to(elsewhere)
    assert prepare(config, paths).cases["a"].image.size


@pytest.mark.parametrize("target", ["empty", "nowhere", "file"])
def test_e6_link_to_what_is_not_ours_is_refused_and_nothing_is_put_there(finished, tmp_path, target):
    config, _, dataset = finished
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    link = tmp_path / "theirs" / "prepared" / dataset.folder.name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / target)
    with pytest.raises(BadInput, match="was not made by this program"):
        prepare(config, {"data": str(tmp_path / "theirs")})
    assert not list((tmp_path / "empty").iterdir()) and (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


READ_ONLY = """
import json, subprocess, sys
from covidseg.data.prepare.run import prepare
from covidseg.system.errors import EnvironmentFault
options, paths = json.loads(sys.argv[1])
subprocess.run(["mount", "--bind", paths["data"], paths["data"]], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", paths["data"]], check=True)
print(len(prepare(options, paths).cases))
try:
    prepare({**options, "spacing_zyx": [10, 10, 10]}, paths)
except EnvironmentFault as error:
    print(error)
"""


def test_e6_read_only_disk_serves_what_is_finished_and_says_what_it_cannot(finished):
    config, paths, _ = finished
    cases, error = in_private_mounts(READ_ONLY, json.dumps([config, paths])).splitlines()
    assert cases == "3" and "Read-only" in error and "-> choose another paths.data" in error


def test_data_folder_that_is_a_file_is_an_environment_fault(make_folder, data_config, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(EnvironmentFault, match=r"choose another paths\.data"):
        prepare(data_config(make_folder()), {"data": str(tmp_path / "data")})


def test_e7_killed_worker_is_named_and_the_others_finish():
    items = [signal.SIGCHLD, signal.SIGKILL, signal.SIGCHLD, signal.SIGCHLD]  # SIGCHLD: ignored
    results = dict(map_unordered(signal.raise_signal, items[:2], 1, lambda item: f"case {item:d}"))
    assert results[signal.SIGCHLD] is None
    assert isinstance(results[signal.SIGKILL], EnvironmentFault) and "case 9" in str(results[signal.SIGKILL])
    assert len(list(map_unordered(signal.raise_signal, items, 2, str))) == 4


def test_e7_killed_worker_stops_the_data_set_and_keeps_the_others(make_folder, data_config, paths, monkeypatch):
    config = data_config(make_folder())

    def one_dies(function, items, workers, name):
        for item in items:
            died = EnvironmentFault(name(item), "its process was killed (out of memory?)")
            yield item, died if item.source.id == "b" else function(item)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "map_unordered", one_dies)
        with pytest.raises(EnvironmentFault, match="case b"):
            prepare({**config, "allow_refused": True}, paths)
    folder = next(Path(paths["data"]).glob("prepared/folder-*"))
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"a", "c"}
    assert "b,its process was killed" in (folder / "failures.csv").read_text()
    dataset = prepare(config, paths)
    assert set(dataset.cases) == {"a", "b", "c"} and not (folder / "failures.csv").exists()


def test_a_bug_in_a_worker_keeps_its_traceback_and_names_the_item():
    with pytest.raises(TypeError) as caught:
        list(map_unordered(len, [3], 1, lambda item: f"case {item}"))
    assert "case 3" in "".join(caught.value.__notes__)


def test_workers_end_when_the_iterator_is_dropped():
    results = map_unordered(time.sleep, [0.0, 60.0, 60.0], 2, str)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 10


# C: labels


def test_refused_cases_are_listed_and_the_others_are_prepared(make_folder, data_config, paths):
    root = make_folder(["a", "b", "c", "d"])
    shutil.copy(root / "images" / "a.nii.gz", root / "lungs" / "b.nii.gz")  # a CT given as a mask
    whole = (root / "images" / "c.nii.gz").read_bytes()
    (root / "images" / "c.nii.gz").write_bytes(whole[: len(whole) // 2])
    config = data_config(root)
    with pytest.raises(BadInput, match="2 of 4 cases are refused") as caught:
        prepare(config, paths)
    assert caught.value.exit_code == 2 and "allow_refused=true" in str(caught.value)
    folder = next(Path(paths["data"]).glob("prepared/folder-*"))
    lines = (folder / "failures.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["case", "b", "c"]
    assert "b.nii.gz: labels must be" in lines[1] and "c.nii.gz: truncated" in lines[2]
    dataset = prepare({**config, "allow_refused": True}, paths)
    assert set(dataset.cases) == {"a", "d"} and dataset.folder == folder
    with pytest.raises(BadInput, match="2 of 4 cases are refused"):
        prepare(config, paths)  # not silently forgotten


def test_a_scan_that_may_not_be_read_is_an_environment_fault_and_the_others_go_on(
    make_folder, data_config, paths, monkeypatch
):
    config, real = data_config(make_folder()), os.open

    def guarded(path, *arguments, **more):
        if str(path).endswith("images/b.nii.gz"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **more)

    def read(path):
        return sha256(path) if not str(path).endswith("images/b.nii.gz") else guarded(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded)
        patch.setattr("covidseg.data.prepare.fingerprints.sha256", read)
        for attempt in (preparation.check, lambda options: preparation.run(options, Path(paths["data"]))):
            outcome = attempt({**config, "allow_refused": True})
            assert [info["id"] for info in outcome.infos] == ["a", "c"] and outcome.dataset is None
            with pytest.raises(EnvironmentFault, match=r"^b\.nii\.gz: permission denied -> ask its owner"):
                outcome.complain(allow_refused=True)
    assert len(prepare(config, paths).cases) == 3


def test_one_line_for_many_refused_cases_has_one_remedy(make_folder, data_config, paths):
    root = make_folder()
    (root / "images" / "b.nii.gz").write_bytes(b"")
    (root / "lungs" / "c.nii.gz").unlink()
    (root / "lungs" / "c.nii.gz").symlink_to("nowhere")
    for attempt in (preparation.check, lambda options: preparation.run(options, Path(paths["data"]))):
        outcome = attempt(data_config(root))
        with pytest.raises(BadInput, match=r"^data: 2 of 3 cases are refused; the first: ") as caught:
            outcome.complain(allow_refused=False)
        assert str(caught.value).count(" -> ") == 1 and ".nii.gz: is " in str(caught.value)


def test_c6_empty_lesion_mask_must_be_declared(make_folder, data_config, paths):
    root = make_folder(lesion_free=["b"])
    with pytest.raises(BadInput, match=r"case b: its lesion mask is empty -> data.may_be_empty=true"):
        prepare(data_config(root), paths)
    dataset = prepare(data_config(root, "data.may_be_empty=true"), paths)
    assert dataset.cases["b"].foreground["lesion"].shape == (0, 3)
    assert "no lesion" in dataset.cases["b"].info["notes"]


def test_c6_empty_lung_mask_is_refused_whatever_the_lesions_say(make_folder, data_config, paths, write_volume):
    root = make_folder(lesion_free=["b"])
    for name in "ab":  # with a lesion, without
        write_volume(root / "lungs" / f"{name}.nii.gz", np.zeros((16, 28, 32), np.uint8))
    outcome = preparation.check(data_config(root, "data.may_be_empty=true"))
    assert [(name, error.wrong) for name, error in outcome.refused] == [
        ("a", "its lung mask is empty"), ("b", "its lung mask is empty")
    ]  # fmt: skip
    for name in "ab":
        (root / "lungs" / f"{name}.nii.gz").unlink()
    assert prepare(data_config(root, "data.may_be_empty=true"), paths).cases["a"].annotated == ("lesion",)


def test_c6_a_lung_that_is_all_lesion_is_no_empty_mask(make_folder, data_config):
    root = make_folder()
    shutil.copy(root / "lungs/a.nii.gz", root / "lesions/a.nii.gz")
    outcome = preparation.check(data_config(root))
    assert not outcome.refused and outcome.infos[0]["volume_ml"]["lung"] == 0


def test_c8_exchanged_masks_are_noticed(make_folder, data_config, paths):
    root = make_folder()
    (root / "lungs").rename(root / "x")
    (root / "lesions").rename(root / "lungs")
    (root / "x").rename(root / "lesions")
    notes = prepare(data_config(root), paths).cases["a"].info["notes"]
    assert any("labels exchanged?" in note for note in notes)


def test_masks_in_another_geometry_are_refused(make_folder, data_config, paths, tmp_path):
    root = make_folder()
    make_folder(["b"], root=tmp_path / "other", spacing_zyx=(8.0, 9.0, 9.3))
    shutil.copy(tmp_path / "other/lungs/b.nii.gz", root / "lungs/b.nii.gz")
    with pytest.raises(BadInput, match=r"b\.nii\.gz"):
        prepare(data_config(root), paths)


def test_only_lungs_or_only_lesions_is_enough(make_folder, data_config, paths):
    root = make_folder()
    (root / "lungs/a.nii.gz").unlink()
    (root / "lesions/b.nii.gz").unlink()
    outcome = preparation.run(data_config(root), Path(paths["data"]))
    assert outcome.dataset.cases["a"].annotated == ("lesion",) and outcome.dataset.cases["b"].annotated == ("lung",)
    assert set(np.unique(outcome.dataset.cases["a"].reference())) == {0, 2}
    assert any("lungs/ has no mask of 1 of 3 cases: a" in note for note in outcome.notes)


@pytest.mark.parametrize(
    "override",
    [
        "data.workers=-1", "data.workers=1.5", "data.workers=two", "data.foreground_voxels=0", "data.verify=1",
        "data.may_be_empty=maybe", "data.allow_refused=2", "data.name=../x", "data.name=..",
        "data.spacing_zyx=[0,1,1]", "data.spacing_zyx=[1,1]", "data.spacing_zyx=1.5", "data.spacing_zyx=[a,1,1]",
        "data.spacing_zyx=[-1,1,1]", "data.spacing_zyx=[inf,1,1]", "data.spacing_zyx=[nan,1,1]",
        "data.spacing_zyx=null", "data.window=[250,-1250]", "data.window=[1]", "data.window=wide",
        "data.splits.seed=-1", "data.splits.seed=1.5", "data.splits.folds=1", "data.splits.folds=-3",
        "data.splits.folds=five", "data.splits.test_fraction=1", "data.splits.test_fraction=-0.1",
        "data.splits.test_fraction=nan", "data.splits.validation_fraction=half", "data.splits.published=4",
        "data.splits.external_sites=AB", "data.splits.external_sites=[true]", "data.splits.external_sites=null",
        "data.splits=null", "data.source=folder",
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_before_anything_is_read(data_config, tmp_path, override):
    config = data_config(tmp_path / "nowhere", override)
    for attempt in (preparation.check, lambda options: preparation.run(options, tmp_path / "data")):
        with pytest.raises(BadInput) as caught:
            attempt(config)
        assert caught.value.what.startswith(override.partition("=")[0] + "=") and caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_of_the_division_is_named(data_config, tmp_path):
    with pytest.raises(BadInput, match=r"^data\.splits\.fold: there is no such option -> choose one of seed, .*folds"):
        preparation.check(data_config(tmp_path, "+data.splits.fold=3"))


def test_an_external_site_must_be_somebodys(make_folder, data_config, paths):
    root = make_folder(csv="case,site\na,AB\nb,C\nc,7\n")
    with pytest.raises(BadInput, match=r"external_sites=\[A\]: no case is from there -> the sites are 7, AB, C"):
        preparation.check(data_config(root, "data.splits.external_sites=[A]"))
    dataset = prepare(data_config(root, "data.splits.external_sites=[7]"), paths)  # a number, to Hydra
    assert dataset.split().external == ["c"]
    (root / "cases.csv").unlink()
    with pytest.raises(BadInput, match="names no site"):
        prepare(data_config(root, "data.splits.external_sites=[A]"), paths)


@pytest.mark.parametrize(
    ("csv", "override", "message"),
    [
        ("case,patient,split\na,p,train\nb,p,test\n", "data.splits.folds=0", "patient p is in train and in test"),
        ("case,split\na,Train\n", "data.splits.folds=0", "case a: split 'Train' is none of .* -> write train in"),
        ("case,patient,site\na,p,A\nb,p,B\nc,,A\n", "data.splits.external_sites=[B]", "patient p is in"),
        ("case,patient\na,p\nb,p\nc,p\n", "data.splits.test_fraction=0.3", "1 patients cannot give 1 away"),
        ("case,patient\na,p\n", "data.splits.published=nowhere.json", "there is no such file"),
    ],
)
def test_f7_a_division_that_cannot_be_made_is_refused_before_a_scan_is_read(
    make_folder, data_config, paths, monkeypatch, csv, override, message
):
    config = data_config(make_folder(csv=csv), override)
    monkeypatch.setattr(preparation, "build", None)
    for attempt in (preparation.check, lambda options: preparation.run(options, Path(paths["data"]))):
        with pytest.raises(BadInput, match=message):
            attempt(config)
    assert not Path(paths["data"]).exists()


def test_check_shows_the_sets_that_prepare_makes(make_folder, data_config, paths):
    root = make_folder(list("abcdefgh"), lesion_free="ab", csv="case,site\nh,B\n")
    config = data_config(root, "data.splits.external_sites=[B]", "data.may_be_empty=true")
    checked, made = preparation.check(config), preparation.run(config, Path(paths["data"]))
    assert checked.sides == made.sides == vars(made.dataset.split())
    assert checked.sides["external"] == ["h"] and sum(map(len, checked.sides.values())) == 8
    (root / "lungs" / "c.nii.gz").write_bytes(b"")
    assert preparation.check(config).sides == {}  # not known while a case is refused
    assert sum(map(len, preparation.check({**config, "allow_refused": True}).sides.values())) == 7


def test_check_writes_nothing(make_folder, data_config, tmp_path):
    root = make_folder()
    before = contents(tmp_path)
    outcome = preparation.check(data_config(root))
    assert [info["id"] for info in outcome.infos] == ["a", "b", "c"] and not outcome.refused
    assert contents(tmp_path) == before


def test_p13_a_converter_outside_the_package_is_refused(data_config, tmp_path):
    config = data_config(tmp_path)
    config["source"] = {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}
    with pytest.raises(BadInput, match="is no class that a configuration of data may name"):
        preparation.check(config)
    assert not (tmp_path / "canary").exists()


def test_published_folds_come_from_a_file(make_folder, data_config, paths, tmp_path):
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [{"train": ["a", "b"], "test": ["c"]}]}))
    config = data_config(make_folder(), f"data.splits.published={tmp_path}/folds.json")
    split = prepare(config, paths).split(0)
    assert (split.train, split.test) == (["a", "b"], ["c"])
    with pytest.raises(BadInput, match="fold=1"):
        prepare(config, paths).split(1)
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["a"]}]}')
    with pytest.raises(BadInput, match="is not a list of folds"):
        prepare(config, paths)


def test_marker_is_needed_to_open(finished):
    *_, dataset = finished
    (dataset.folder / MARKER).unlink()
    with pytest.raises(BadInput, match="is not a prepared data set"):
        PreparedDataset.open(dataset.folder)
