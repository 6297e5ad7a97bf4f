"""A prepared folder copied to a node's own disk: once, whole, and of the right state."""

import subprocess
import sys

import pytest

from covidseg.data import staging
from covidseg.data.staging import STAGE, staged
from covidseg.data.store import PreparedDataset
from covidseg.system.errors import EnvironmentFault


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGE, str(tmp_path / "node"))
    return tmp_path / "node"


def test_without_a_stage_the_folder_is_used_where_it_is(prepared, monkeypatch):
    monkeypatch.delenv(STAGE, raising=False)
    assert staged(prepared) == prepared


def test_the_copy_is_the_data_set_and_is_made_once(prepared, node, monkeypatch):
    copy = staged(prepared)
    assert copy == node / prepared.name
    ours, theirs = PreparedDataset.open(copy), PreparedDataset.open(prepared)
    assert ours.hash == theirs.hash and list(ours.cases) == list(theirs.cases)
    monkeypatch.setattr(staging.shutil, "copytree", lambda *a: pytest.fail("copied again"))
    assert staged(prepared) == copy == staged(copy)
    assert {path.name for path in node.iterdir()} == {prepared.name, f".{prepared.name}.lock"}


def test_a_copy_that_broke_off_is_made_anew(prepared, node):
    half = node / prepared.name
    half.mkdir(parents=True)
    (half / "c0").mkdir()
    PreparedDataset.open(staged(prepared))


def test_a_node_without_room_is_one_line(prepared, node, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(EnvironmentFault, match=r"needs \d+ MiB on this node, and 0 MiB are free -> stage elsewhere"):
        staged(prepared)
    assert not (node / prepared.name).exists()


def test_processes_of_a_node_share_one_copy(prepared, node):
    """Four at once: one copies, the others wait and find it."""
    code = (
        "import sys; from pathlib import Path; from covidseg.data import staging\n"
        "copy = staging._copy\n"
        "def counted(*a): print('copied'); copy(*a)\n"
        "staging._copy = counted; print(staging.staged(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(prepared)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert sum("copied" in text for text in said) == 1
    assert all(str(node / prepared.name) in text for text in said)


def test_a_training_reads_the_copy(train_config, node, monkeypatch):
    from covidseg.data.train.datamodule import CTDataModule
    from covidseg.training import run

    read = []

    class Watched(CTDataModule):
        def __init__(self, dataset, *arguments):
            read.append(dataset.folder)
            super().__init__(dataset, *arguments)

    monkeypatch.setattr(run, "CTDataModule", Watched)
    assert run.train(train_config("model.width=2"))["sets"]
    assert [folder.parent for folder in read] == [node]
