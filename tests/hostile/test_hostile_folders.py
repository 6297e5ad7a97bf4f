"""FAULTS K1: run folders and prepared folders from a stranger are data: nothing in them runs or says where to write."""

import hashlib
import io
import json
import os

import numpy as np
import pytest
import torch
import yaml

WRONG = [None, [], {}, "text", -1, 1e300, True, "../../elsewhere", "/etc/passwd", "x" * 100_000]
INTERPOLATIONS = ["${oc.env:HOME}", "${paths.data}", "${oc.decode:'[1]'}"]
JSON_OF_A_RUN = ("metrics.json", "manifest.json", "status.json", "tracking.json")
NOT_JSON = ["", "{", "[" * 100_000, '{"sets": NaN}', '{"sets": {"test": {"lesion": {"n": 1e999}}}}', "\x00\x01"]
# In the default tests one in so many of the places is spoilt; the slow test spoils every one.
STRIDE = 9


def places_in(node, at=()):
    """The path of every node of a tree of plain containers, the root left out."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from places_in(value, (*at, key))


def changed(tree, path, value):
    """A copy of the tree with `value` at `path`."""
    tree = json.loads(json.dumps(tree))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def evaluate(command, place):
    return command("evaluate", f"run={place.run}", "device=cpu", "overwrite=true")


def look(command, place):
    """What reads a run folder without its network."""
    command("status")
    command("report", "table=t")


def test_the_honest_folders_are_evaluated_and_reported(command, place):
    assert evaluate(command, place) == 0, command.said
    look(command, place)
    assert (place.root / "experiments/t/results/table.md").exists()
    assert list((place.run / "evaluation").rglob("metrics.json"))


def spoil_configuration(command, place, first, stride):
    config = yaml.safe_load((place.run / "config.yaml").read_text())
    payloads = [*place.payloads(), *INTERPOLATIONS, *WRONG]
    statuses = set()
    for number, path in list(enumerate(places_in(config)))[first::stride]:
        value = payloads[number % len(payloads)]
        (place.run / "config.yaml").write_text(yaml.safe_dump(changed(config, path, value)))
        statuses.add(evaluate(command, place))
        command("status")
    return statuses


def test_k1_any_value_of_a_configuration_may_be_hostile(command, place):
    assert 2 in spoil_configuration(command, place, 0, STRIDE)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4))
def test_k1_every_value_of_a_configuration_may_be_hostile(command, place, first):
    assert 2 in spoil_configuration(command, place, first, 4)


def test_k1_every_payload_in_the_sections_that_are_instantiated(command, place):
    config = yaml.safe_load((place.run / "config.yaml").read_text())
    for section in (("model",), ("data", "source"), ("loss",), ("optimizer", "schedule"), ("augment",), ("task",)):
        for payload in place.payloads()[::2]:
            for value in (payload, {"_target_": "torch.nn.Identity", "nested": [payload]}, {"_args_": [payload]}):
                (place.run / "config.yaml").write_text(yaml.safe_dump(changed(config, section, value)))
                evaluate(command, place)
    (place.run / "manifest.json").unlink()  # now the data set is made from the configuration
    for payload in place.payloads():
        spoilt = changed(config, ("data", "source"), {**config["data"]["source"], "root": payload})
        (place.run / "config.yaml").write_text(yaml.safe_dump(spoilt))
        assert evaluate(command, place) == 2


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "task: !!python/name:os.system",
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b]\n",
        "- 1\n- 2\n",
        "{" * 5000,
        "model: {_target_: os.system}\n" + "# " + "x" * (1 << 20),
        "\x00",
    ],
)
def test_k1_yaml_that_is_no_configuration(command, place, text):
    (place.run / "config.yaml").write_text(text)
    assert evaluate(command, place) == 2
    look(command, place)


@pytest.mark.parametrize("name", JSON_OF_A_RUN)
def test_k1_any_value_of_the_json_files_of_a_run(command, place, name):
    honest = json.loads((place.run / name).read_text()) if (place.run / name).exists() else {"run_id": "a" * 16}
    texts = [
        json.dumps(changed(honest, path, WRONG[number % len(WRONG)])) for number, path in enumerate(places_in(honest))
    ]
    for text in [*NOT_JSON, *map(json.dumps, WRONG[::3]), *texts]:
        (place.run / name).write_text(text)
        look(command, place)


def test_k1_a_table_of_cases_that_is_none(command, place):
    honest, script = (place.run / "cases.csv").read_text(), "<script>alert(1)</script>"
    for old, new in (("0.5", "nan"), ("0.5", "inf"), ("0.5", "7"), ("c6", script), ("c6", "=cmd()")):
        (place.run / "cases.csv").write_text(honest.replace(old, new))
        look(command, place)
    assert "<script>alert" not in (place.root / "experiments/t/results/report.html").read_text()
    (place.run / "cases.csv").write_bytes(b"\xff\x00" * 1000)
    look(command, place)


def test_k1_slices_that_are_none(command, place):
    folder = place.run / "slices"
    folder.mkdir()
    kept = {
        "z": 1,
        "image": np.zeros((4, 4), np.int16),
        "reference": np.ones((4, 4), bool),
        "prediction": np.ones((4, 4), bool),
        "spacing_yx": (1.0, 1.0),
        "volumes": np.packbits(np.ones((2, 3, 3, 3), bool)),
        "volumes_shape": (2, 3, 3, 3),
        "volume_spacing_zyx": (1.0, 1.0, 1.0),
    }
    hostile = {"object": np.array([print], object), "bomb": (2, 1 << 20, 1 << 20, 1 << 20), "text": "x", "none": ()}
    for number, name in enumerate(kept):
        for value in list(hostile.values())[number % 2 :: 2]:
            np.savez_compressed(folder / "c6_lesion.npz", **{**kept, name: value})
            command("report", "table=t")
    (folder / "c6_lesion.npz").write_bytes(b"PK\x03\x04 no archive")
    command("report", "table=t")


def test_k1_a_signed_checkpoint_of_other_content(command, place):
    path = place.run / "checkpoints/last.ckpt"
    honest = torch.load(path, weights_only=True)["state_dict"]
    name = next(iter(honest))
    states = [
        [1, 2],
        {name: "text"},
        {1: torch.zeros(1)},
        {**honest, name: torch.zeros(1, device="meta")},
        {**honest, name: torch.zeros(3, 3).to_sparse()},
        {**honest, name: torch.zeros(2)},
        {key: value for key, value in honest.items() if key != name},
        {**honest, name: torch.full_like(honest[name], float("nan"))},
    ]
    for content in [
        *({"state_dict": state} for state in states),
        {"state_dict": honest, "covidseg_format": 99},
        [1],
        7,
    ]:
        stream = io.BytesIO()
        torch.save(content, stream)
        path.write_bytes(stream.getvalue() + b"covidseg-sha256:" + hashlib.sha256(stream.getvalue()).digest())
        assert evaluate(command, place) == 2


@pytest.mark.parametrize("width", [1 << 20, 1 << 40, 0, -3])
def test_k1_a_width_without_end_takes_no_memory(command, place, width):
    config = yaml.safe_load((place.run / "config.yaml").read_text())
    (place.run / "config.yaml").write_text(yaml.safe_dump(changed(config, ("model", "width"), width)))
    assert evaluate(command, place) == 2


def test_k1_a_ledger_that_names_other_folders(command, place):
    ledger = place.root / "runs/.sweeps/t-00000000.json"
    ledger.parent.mkdir(parents=True)
    row = {"name": "t/r/lesion/seed0", "folder": "../t/r/lesion/seed0", "hash": "x", "devices": 1, "max_steps": 8}
    row |= {"patches_per_step": 2, "state": "done", "reason": "", "placed_on": [], "started": 0.0, "seconds": 0.0}
    honest = {"sweep": "t", "pid": 1, "host": "h", "started": 0.0, "updated": 0.0, "rows": [row]}
    for number, path in enumerate(places_in(honest)):
        for value in (WRONG[number % len(WRONG)], "../../elsewhere", 7):
            ledger.write_text(json.dumps(changed(honest, path, value)))
            assert command("status") == 0
    for text in NOT_JSON:
        ledger.write_text(text)
        assert command("status") == 0


def test_k1_a_run_folder_whose_evaluation_is_a_link_elsewhere(command, place):
    (place.run / "evaluation").symlink_to(place.root / "elsewhere")
    assert evaluate(command, place) == 2
    assert not list((place.root / "elsewhere").iterdir())


def test_k1_a_run_that_says_where_data_are_to_be_prepared_or_computed(command, place):
    """Only `paths.data` of this command is written to, whatever the run's configuration says."""
    config = yaml.safe_load((place.run / "config.yaml").read_text())
    config["paths"]["data"] = str(place.root / "elsewhere")
    config["data"]["source"]["root"] = config["data"]["root"] = str(place.root / "elsewhere")
    (place.run / "config.yaml").write_text(yaml.safe_dump(config))
    (place.run / "manifest.json").unlink()
    assert evaluate(command, place) == 2  # phantoms, which nobody has computed there
    assert not list((place.root / "elsewhere").iterdir())


def spoil_prepared(command, place, name, stride):
    honest = json.loads((place.prepared / name).read_text())
    values = [*WRONG[:7:2], "../../elsewhere", "/etc", "c0/../../..", {"_target_": "os.system"}]
    paths = [path for path in places_in(honest) if path[0] != "foreground" or len(path) < 3 or path[2] == 0]
    for number, path in list(enumerate(paths))[::stride]:
        for value in values if stride == 1 else [values[number % len(values)]]:
            (place.prepared / name).write_text(json.dumps(changed(honest, path, value)))
            place.sign()
            evaluate(command, place)


@pytest.mark.parametrize("name", ["dataset.json", "splits.json", "c6/case.json"])
def test_k1_any_value_of_a_prepared_folder(command, place, name):
    spoil_prepared(command, place, name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dataset.json", "splits.json", "c6/case.json"])
def test_k1_every_value_of_a_prepared_folder(command, place, name):
    spoil_prepared(command, place, name, 1)


@pytest.mark.parametrize("case", ["/etc", "../../../elsewhere", "..", "a/b", "", "x" * 200, "a\nb"])
def test_k1_ids_are_looked_at_when_they_are_read(command, place, case):
    index = json.loads((place.prepared / "dataset.json").read_text())
    index["cases"][6]["id"] = case
    splits = json.loads((place.prepared / "splits.json").read_text().replace('"c6"', json.dumps(case)))
    (place.prepared / "dataset.json").write_text(json.dumps(index))
    (place.prepared / "splits.json").write_text(json.dumps(splits))
    place.sign()
    assert evaluate(command, place) == 2
    assert not list((place.root / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["image.npy", "mask.npy"])
def test_k1_arrays_of_objects_of_other_shapes_and_of_other_types(command, place, name):
    path = place.prepared / "c6" / name
    honest = np.load(path)
    for array in (honest[1:], honest[0], honest.astype(np.float64), np.zeros(0), np.array(["x"])):
        np.save(path, array)
        place.sign()
        command("train", *_training(place))
    path.write_bytes(place.pickled.read_bytes())
    place.sign()
    assert command("train", *_training(place)) == 2
    bomb = b"{'descr': '<i2', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(bomb + b"\n").to_bytes(2, "little") + bomb + b"\n")
    place.sign()
    assert command("train", *_training(place)) == 2


def test_k1_a_reference_of_objects_or_larger_than_its_scan(command, place):
    path = place.prepared / "c6/reference.npz"
    shape = np.load(path)["labels"].shape
    objects, large = np.array([print], object), np.zeros((500, 500, 500), np.uint8)
    for labels in (objects, large, np.zeros(shape, np.int16), np.zeros(2)):
        np.savez_compressed(path, labels=labels)
        place.sign()
        assert evaluate(command, place) == 2
    path.write_bytes(b"no archive")
    place.sign()
    assert evaluate(command, place) == 2


def _training(place):
    case = json.loads((place.prepared / "splits.json").read_text())
    case["fixed"] = {**case["fixed"], "train": ["c6"], "test": ["c0"]}
    (place.prepared / "splits.json").write_text(json.dumps(case))
    place.sign()
    return [
        "recipe=smoke", "model=unet3d", "model.width=2", f"data.prepared={place.prepared}", "logger=csv", "trainer=cpu",
        "training.patch_size_zyx=[16,16,16]", "inference.roi_zyx=[32,48,48]", "name=own", f"row=r{os.urandom(4).hex()}",
        "training.max_steps=1", "training.validate_every=1", "training.foreground_probability=0",
    ]  # fmt: skip
