"""Networks by name: the same ones as Hydra's, wrong options said plainly, and nothing off the list ever run."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn

import covidseg
from choices import NETWORKS as MODELS
from choices import OURS, PYRAMIDS, VARIATIONS, narrowest
from covidseg.blocks.pyramid import PASPP
from covidseg.blocks.variation import ChannelAttention
from covidseg.config.build import build_network, instantiate
from covidseg.config.paths import CONF
from covidseg.system.errors import BadInput

SLOTS = {"variation": VARIATIONS, "pyramid": PYRAMIDS}


def hydra_model(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides)).model


def shapes(network):
    return {key: value.shape for key, value in network.state_dict().items()}


def test_the_config_groups():
    assert {"covidsegnet", "fcn", "fdfcn", "unet3d", "unetpp", "vnet"} <= set(MODELS)
    assert {"segresnet", "dynunet", "mednext", "swinunetr"} <= set(MODELS)
    assert {"cab", "ceb", "fv", "fv_ungated", "none", "psb"} <= set(SLOTS["variation"])
    assert {"aspp", "none", "paspp", "resaspp"} <= set(SLOTS["pyramid"])


@pytest.mark.parametrize("name", MODELS)
def test_same_network_as_hydra(name):
    width = narrowest(name)
    model = hydra_model(f"model={name}", f"model.width={width}")
    torch.manual_seed(0)
    ours = build_network(name, width=width)
    torch.manual_seed(0)
    theirs = instantiate(model, "model")
    assert type(ours) is type(theirs) and repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("slot, block", [(slot, block) for slot, blocks in SLOTS.items() for block in blocks])
def test_every_block_composes_and_builds(slot, block):
    theirs = instantiate(hydra_model("model=unet3d", f"model/{slot}={block}", "model.width=4"), "model")
    assert shapes(theirs) == shapes(build_network("unet3d", width=4, **{slot: block}))


@pytest.mark.parametrize("name", OURS)
def test_yaml_lists_every_constructor_argument_with_its_value(name):
    config = hydra_model(f"model={name}")
    network = build_network(name)
    parameters = inspect.signature(type(network)).parameters
    assert set(config) == {"_target_", *parameters}
    for key, parameter in parameters.items():
        if key not in ("variation", "pyramid"):
            assert config[key] == parameter.default, key


def unlike_the_constructor(config):
    """Options of a block's file, those of its branches included, whose value is not the constructor's default."""
    defaults = inspect.signature(get_class(config.pop("_target_"))).parameters
    assert config.pop("_partial_") is True
    unlike = {}
    for key, value in config.items():
        if isinstance(value, dict):
            block = get_class(value["_target_"])
            unlike |= {f"{key}.{option}": wrong for option, wrong in unlike_the_constructor(value).items()}
            value = block
        if value != defaults[key].default:
            unlike[key] = value
    return unlike


@pytest.mark.parametrize("slot, block", [(slot, block) for slot, blocks in SLOTS.items() for block in blocks])
def test_yaml_of_a_block_repeats_the_constructors_reading(slot, block):
    config = hydra_model("model=unet3d", f"model/{slot}={block}")[slot]
    assert unlike_the_constructor(OmegaConf.to_container(config)) == {
        "cab": {"contrast": ChannelAttention, "position": None},
        "ceb": {"position": None},
        "psb": {"contrast": None},
        "fv_ungated": {"gated": False},
    }.get(block, {})


def test_the_alternatives_are_options_on_the_command_line():
    model = hydra_model("model.variation.contrast.kernel_size=1", "model.pyramid.paspp_sum=outputs", "model.width=4")
    network = instantiate(model, "model")
    assert network.after_block[0].branches["contrast"].excite[1].kernel_size == (1, 1, 1)
    assert network.context.paspp_sum == "outputs"
    assert shapes(network) == shapes(build_network("covidsegnet", width=4, **{"variation.contrast.kernel_size": 1}))


@pytest.mark.parametrize("task, channels", [("lesion", 2), ("lung", 2), ("joint", 3)])
def test_the_task_sets_the_head(task, channels):
    assert instantiate(hydra_model(f"task={task}", "model.width=4"), "model").head.out_channels == channels


def test_one_sigmoid_channel():
    assert instantiate(hydra_model("model.out_channels=1", "model.width=4"), "model").head.out_channels == 1


def test_defaults_and_empty_slots():
    assert isinstance(build_network("covidsegnet", width=4).context, PASPP)
    assert shapes(build_network("unet3d", width=4)) == shapes(build_network("unet3d", "none", "none", width=4))


def test_a_block_of_ones_own():
    network = covidseg.build_network("unet3d", variation=lambda channels: nn.Conv3d(channels, channels, 1), width=4)
    assert [block.in_channels for block in network.variation] == [8, 16, 32]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "unet3"}, "model=unet3: there is no such choice -> did you mean unet3d?"),
        ({"name": "../data/phantom"}, "there is no such choice"),
        ({"name": "unet3d", "variation": "fvv"}, "model/variation=fvv: there is no such choice -> did you mean fv?"),
        (
            {"name": "fcn", "variation": "fv"},
            "fcn has no such slot -> networks with it: covidsegnet, unet3d, unetpp, vnet",
        ),
        (
            {"name": "fdfcn", "pyramid": "none"},
            "fdfcn has no such slot -> networks with it: covidsegnet, unet3d, unetpp",
        ),
        ({"name": "unet3d", "widht": 4}, "widht: unet3d has no such option -> did you mean width?"),
        ({"name": "unet3d", "variation": "psb", "variation.gate": 1}, "variation.gate: unet3d has no such option"),
        ({"name": "unet3d", "width": 0}, "width is a whole number from 1 on, not 0"),
        ({"name": "vnet", "pyramid": "paspp", "width": "wide"}, "width='wide': is not of the right kind -> a number"),
        ({"name": "unet3d", "width": True}, "width=True: is not of the right kind -> a number"),
        ({"name": "unet3d", "width": 4.0}, "width is a whole number from 1 on, not 4.0"),
        ({"name": "unet3d", "width": torch.Size}, "width=<class 'torch.Size'>: is no value of an option"),
        ({"name": "unet3d", "width.first": 4}, "width.first: unet3d has no such option -> did you mean width?"),
        ({"name": "covidsegnet", "downsampling": "mean"}, "downsampling is one of conv, maxpool, not 'mean'"),
        (
            {"name": "covidsegnet", "variation.contrast.kernelsize": 1},
            "covidsegnet has no such option -> did you mean kernel_size? one of kernel_size, bottleneck",
        ),
        ({"name": "covidsegnet", "pyramid": "none", "pyramid.sum": 1}, "covidsegnet has no such option -> there is"),
        (
            {"name": "covidsegnet", "variation": nn.Identity, "variation.contrast.kernel_size": 1},
            "variation.contrast.kernel_size: does not reach a variation of your own -> give its arguments to functools",
        ),
        ({"name": "covidsegnet", "variation.contrast.kernel_size": -1}, "odd whole number from 1 on, not -1"),
        ({"name": "vnet", "width": 2, "in_channels": 3}, "width is at least in_channels=3 in VNet, not 2"),
    ],
)
def test_a_wrong_choice_is_one_line_that_says_what_fits(arguments, message):
    with pytest.raises(BadInput) as error:
        build_network(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "model, option, value, wanted",
    [
        ("vnet", "batch_norm", "off", "true or false"),
        ("unetpp", "deep_supervision", "no", "true or false"),
        ("unet3d", "checkpoint_activations", "off", "true or false"),
        ("unet3d", "checkpoint_activations", "1", "true or false"),
        ("unet3d", "checkpoint_activations", "null", "true or false"),
        ("unet3d model/variation=fv_ungated", "variation.gated", "no", "true or false"),
        ("covidsegnet", "variation.contrast.bottleneck", "no", "true or false"),
        ("covidsegnet", "variation.contrast.kernel_size", "'3'", "a number"),
        ("covidsegnet", "width", "true", "a number"),
    ],
)
def test_text_is_neither_a_switch_nor_a_number(model, option, value, wanted):
    config = hydra_model(f"model={model.split()[0]}", *model.split()[1:], f"model.{option}={value}")
    found = OmegaConf.select(config, option)
    with pytest.raises(BadInput) as error:
        instantiate(config, "model")
    assert str(error.value).startswith(f"{option}={found!r}: is not of the right kind -> {wanted}")


def test_numbers_of_numpy_are_numbers():
    assert shapes(build_network("covidsegnet", width=np.int64(4))) == shapes(build_network("covidsegnet", width=4))
    assert len(build_network("unetpp", width=2, deep_supervision=np.False_).heads) == 1


CANARY = "print('canary')"
HOSTILE = {
    "system": {"_target_": "os.system", "command": "echo canary"},
    "eval": {"_target_": "builtins.eval", "_args_": [CANARY]},
    "torch.load": {"_target_": "torch.load", "f": "x.ckpt", "weights_only": False},
    "through an admitted module": {"_target_": "covidseg.blocks.variation.torch.load", "f": "x.ckpt"},
    "class that a module imports": {"_target_": "covidseg.nets.unet3d.ConvBNReLU", "in_channels": 1, "out_channels": 1},
    "function of an admitted module": {"_target_": "covidseg.nets.unetpp._nested"},
    "package": {"_target_": "covidseg.nets.unet3d"},
    "no module": {"_target_": "exec"},
    "no text": {"_target_": ["os", "system"]},
    "missing": {"_target_": "covidseg.nets.absent.Network"},
    "other module of ours": {"_target_": "covidseg.system.files.write_text", "path": "x", "text": "y"},
    "positional arguments": {"_target_": "covidseg.nets.unet3d.UNet3D", "_args_": [1]},
    "other key of Hydra": {"_target_": "covidseg.nets.unet3d.UNet3D", "_recursive_": False},
    "positional arguments of a class that takes any": {"_target_": "torch.nn.Identity", "_args_": [1]},
    "class of another library": {"_target_": "subprocess.Popen", "args": ["true"]},
    "by interpolation": {"_target_": "${other}", "other": "os.system"},
    "nested": {"_target_": "covidseg.nets.unet3d.UNet3D", "variation": {"_target_": "os.system", "_partial_": True}},
    "nested in a list": {"_target_": "torch.nn.Identity", "x": [{"y": {"_target_": "subprocess.run", "args": "ls"}}]},
    "nested without a target": {"x": {"_target_": "shutil.rmtree", "path": "/nowhere"}},
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("as_config", [False, True], ids=["dict", "DictConfig"])
@pytest.mark.parametrize("group", ["model", "data", "optimizer", "loss", "augment"])
def test_nothing_off_the_list_is_run(config, as_config, group, monkeypatch, capfd):
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: pytest.fail("torch.load ran"))
    with pytest.raises(BadInput):
        instantiate(OmegaConf.create(config) if as_config else config, group)
    assert "canary" not in capfd.readouterr().out


def test_what_is_on_the_list():
    optimizer = instantiate({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5}, "optimizer")
    assert optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5
    assert isinstance(instantiate({"_target_": "torch.nn.Identity"}, "model"), nn.Identity)


def test_an_unknown_argument_names_its_neighbour():
    with pytest.raises(BadInput, match="UNet3D has no such argument -> did you mean width"):
        instantiate({"_target_": "covidseg.nets.unet3d.UNet3D", "widht": 4}, "model")


def test_import_of_the_package_brings_no_torch():
    code = "import sys, covidseg, covidseg.data.prepare.run; covidseg.build_network; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
