import json

import pytest

from covidseg.runs import manifest
from covidseg.system.errors import BadInput
from covidseg.system.files import write_json

RUN = {"data": {"name": "small", "hash": "aa"}, "parameters": 3}


def test_each_start_is_one_attempt(tmp_path):
    manifest.record(tmp_path, RUN, {"processes": 1})
    whole = manifest.record(tmp_path, RUN, {"processes": 6})
    assert json.loads((tmp_path / "manifest.json").read_text()) == whole
    assert [attempt["processes"] for attempt in whole["attempts"]] == [1, 6]
    assert whole["attempts"][0]["versions"]["torch"] and whole["data"] == RUN["data"]


def test_other_data_are_refused_and_the_manifest_stays(tmp_path):
    manifest.record(tmp_path, RUN, {})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(BadInput, match="started with data aa, now they are bb"):
        manifest.record(tmp_path, {**RUN, "data": {"name": "small", "hash": "bb"}}, {})
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_other_data_replace_those_of_a_start_without_a_checkpoint(tmp_path):
    manifest.record(tmp_path, RUN, {})
    other = {**RUN, "data": {"name": "small", "hash": "bb"}}
    whole = manifest.record(tmp_path, other, {})
    assert whole["data"] == other["data"] and len(whole["attempts"]) == 1


def test_the_command_names_no_place():
    told = manifest.command(
        ["/home/someone/src/train.py", "data.root=/home/someone/ct", "model=fcn", "/home/someone/x", "a=~/y"]
    )
    assert told == ["train.py", "data.root=ct", "model=fcn", "x", "a=y"]


def test_the_manifest_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path):
    made = manifest.record(tmp_path, RUN, {})
    assert made["format"] == manifest.FORMAT
    write_json(tmp_path / "manifest.json", {**made, "format": 2})
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(BadInput, match=r"manifest\.json: has format 2, this code reads 1"):
        manifest.record(tmp_path, RUN, {})
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_resume_with_another_effective_batch_is_refused(tmp_path):
    began = {"processes": 6, "precision": "32-true", "effective_batch_size": 12}
    manifest.record(tmp_path, RUN, began)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(BadInput, match=r"effective batch 12 there, 2 here.*trainer\.devices=6"):
        manifest.record(tmp_path, RUN, {**began, "processes": 1, "effective_batch_size": 2})
    assert len(manifest.record(tmp_path, RUN, began)["attempts"]) == 2
