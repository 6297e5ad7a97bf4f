"""`init_from`: first weights from another run, whole or the encoder's, frozen or not."""

import pytest
import torch
from torch import nn

from covidseg import build_network
from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint
from covidseg.runs.folder import RunFolder, config_hash, run_dir
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json
from covidseg.training.initial import Source, encoder_of, freeze, hold_statistics
from covidseg.training.run import train

OWN = ("covidsegnet", "unet3d", "vnet", "unetpp", "fcn", "fdfcn")


@pytest.mark.parametrize("name", OWN)
def test_the_encoder_is_what_feeds_the_bottom(name):
    """Each part that is named exists, the head is none of it, and in and out channels lie on either side."""
    network = build_network(name, width=4)
    parts = encoder_of(network)
    names = list(network.state_dict())
    assert all(any(weight.startswith(part) for weight in names) for part in parts if part not in EMPTY_SLOTS)
    inside = {weight for weight in names if weight.startswith(parts)}
    first = next(weight for weight, value in network.state_dict().items() if value.ndim == 5)
    heads = {f"{head}.weight" for head, module in network.named_modules() if getattr(module, "out_channels", 0) == 2}
    assert first in inside and heads and not heads & inside


EMPTY_SLOTS = ("variation.", "pyramid.", "after_down.")  # by default


def weights(folder, name="last.ckpt"):
    state = load_checkpoint(folder.checkpoints / name)["state_dict"]
    return {key.removeprefix("network."): value for key, value in state.items()}


@pytest.fixture
def source(train_config):
    """A finished lung run on the same cases and division."""
    cfg = train_config("model=covidsegnet", "model.width=4", "task=lung", "row=source")
    train(cfg)
    return RunFolder(run_dir(cfg))


def fine_tuned(train_config, source, *options):
    """Config of a run on other data: what `source` was trained on cannot be told, so nothing is refused."""
    (source.path / "manifest.json").unlink(missing_ok=True)
    return train_config("model=covidsegnet", "model.width=4", f"init_from={source.path}", *options)


def test_a_run_that_learned_from_the_scored_cases_is_refused(train_config, source, capsys):
    """A run of all cases has seen the test set; one of the same division has not."""
    manifest = read_json(source.path / "manifest.json")
    cfg = train_config("model=covidsegnet", "model.width=4", f"init_from={source.path}", "training.max_steps=1",
                       "training.validate_every=1")  # fmt: skip
    train(cfg)
    assert "cannot be told" not in capsys.readouterr().out
    assert read_json(RunFolder(run_dir(cfg)).path / "manifest.json")["data"] == manifest["data"]
    cfg_all = train_config("model=covidsegnet", "model.width=4", "fold=all", "row=everything", "training.max_steps=1",
                           "training.validate_every=1")  # fmt: skip
    train(cfg_all)
    leaky = train_config("model=covidsegnet", "model.width=4", f"init_from={run_dir(cfg_all)}", "row=leaky")
    with pytest.raises(BadInput, match=r"learned from 2 of the cases that this run is scored on \(c6, c7\)"):
        train(leaky)


def test_all_weights_are_taken_and_what_is_not_there_is_said(train_config, source, capsys, monkeypatch):
    cfg = fine_tuned(train_config, source, "task=joint", "training.max_steps=1", "training.validate_every=1",
                     "optimizer.lr=1e-12", "data.window=[-1000,200]")  # fmt: skip
    train(cfg)
    out = capsys.readouterr().out
    assert "begun anew: head" in out, "three classes instead of two"
    assert "note: data.window was [-1250, 250] there and is [-1000, 200] here" in out
    assert "whether runs/" in out or "cannot be told" in out
    before, after = weights(source), weights(RunFolder(run_dir(cfg)))
    shared = [
        name
        for name, value in after.items()
        if value.is_floating_point() and "running" not in name and "head" not in name
    ]
    assert shared and all(torch.allclose(before[name], after[name], atol=1e-6) for name in shared)
    init = read_json(RunFolder(run_dir(cfg)).path / "manifest.json")["init"]
    assert init["run"] == str(source) and "begun anew: head" in init["weights"]


def test_a_frozen_encoder_stays_bit_for_bit_and_the_rest_learns(train_config, source):
    """Weights and running statistics both; a resumed run ends with the same bits, without asking for the source."""
    options = ["freeze=encoder", "init_parts=encoder", "training.max_steps=4", "training.validate_every=2"]
    cfg = fine_tuned(train_config, source, *options)
    train(cfg)
    before, after = weights(source), weights(RunFolder(run_dir(cfg)))
    encoder = encoder_of(build_network("covidsegnet", width=4))
    for name, value in after.items():
        if name.startswith(encoder):
            assert torch.equal(value, before[name]), name
    moved = [name for name in after if not name.startswith(encoder) and not torch.equal(after[name], before[name])]
    assert any(name.startswith("decoder") for name in moved) and any(name.startswith("head") for name in moved)


def test_freezing_what_was_not_given_is_refused(train_config, source):
    cfg = fine_tuned(train_config, source, "freeze=encoder", "model/variation=cab")
    with pytest.raises(BadInput, match=r"freeze=encoder: cannot be frozen: .* has no weights for"):
        train(cfg)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["init_parts=decoder"], "init_parts=decoder: there is no such choice"),
        (["freeze=head"], "freeze=head: there is no such choice"),
        (["freeze=encoder"], "freeze=encoder: means something with the weights of another run only"),
        (["init_parts=encoder"], "init_parts=encoder: means something with"),
        (["init_from=nowhere"], "init_from=nowhere: holds no config.yaml"),
    ],
)
def test_what_cannot_be_begun_with_is_one_line(train_config, options, wrong):
    with pytest.raises(BadInput, match=wrong):
        train(train_config(*options))


def test_weights_of_another_width_are_refused(train_config, source):
    source_of = Source.open(str(source.path))
    with pytest.raises(BadInput, match="has no weights that fit VNet of this width"):
        source_of.give(build_network("vnet", width=4), "all")
    with pytest.raises(BadInput, match="the encoder: is not known of SegResNet"):
        freeze(build_network("segresnet", width=8), "encoder")


def test_statistics_of_frozen_modules_do_not_drift():
    network = build_network("covidsegnet", width=4)
    freeze(network, "encoder")
    network.train()
    hold_statistics(network)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(2, 1, 16, 16, 16))
    changed = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm3d)}
    frozen = {name for name in norms if name.startswith(encoder_of(network))}
    assert {name.rpartition(".")[0] for name in changed} == norms - frozen and frozen


def test_where_a_run_begins_is_part_of_what_it_is(train_config, source):
    plain, begun = train_config(), train_config(f"init_from={source.path}")
    frozen = train_config(f"init_from={source.path}", "freeze=encoder")
    assert len({config_hash(plain), config_hash(begun), config_hash(frozen)}) == 3
    elsewhere = train_config(f"init_from=/moved/{source}")
    assert config_hash(elsewhere) == config_hash(begun), "where it lies may change"


def test_a_damaged_checkpoint_is_refused(train_config, source):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, source.checkpoints / "last.ckpt")
    with pytest.raises(BadInput, match="has no weights that fit"):
        train(fine_tuned(train_config, source))
