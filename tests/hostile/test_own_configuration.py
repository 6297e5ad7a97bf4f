"""What a configuration may name is added to by this machine's own YAML files, and by nothing else."""

import os
import subprocess
import sys

import pytest

from covidseg.config.build import build_network, instantiate
from covidseg.config.paths import ROOT
from covidseg.system.errors import BadInput

NETWORK = """
from torch import nn

class Tiny(nn.Module):
    stride = 1

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels = in_channels
        self.head = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x):
        return self.head(x)
"""
YAML = "_target_: my_networks.Tiny\nin_channels: 1\nout_channels: ${oc.select:task.out_channels,2}\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a package and a configuration of one's own, COVIDSEG_CONF not yet set."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/my_networks.py").write_text(NETWORK)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/tiny.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_of_ones_own_is_built_by_name(own, monkeypatch):
    with pytest.raises(BadInput, match="model=tiny: there is no such choice"):
        build_network("tiny")  # the working folder's conf/ counts for nothing
    with pytest.raises(BadInput, match="is no class that a configuration of model may name"):
        instantiate({"_target_": "my_networks.Tiny", "in_channels": 1, "out_channels": 2}, "model")
    monkeypatch.setenv("COVIDSEG_CONF", str(own / "conf"))
    assert build_network("tiny").head.out_channels == 2
    with pytest.raises(BadInput, match="is no class that a configuration of loss may name"):
        instantiate({"_target_": "my_networks.Tiny", "in_channels": 1, "out_channels": 2}, "loss")


def test_a_network_of_ones_own_is_trained_and_evaluated(own, train_options):
    options = [option for option in train_options if not option.startswith("model")]
    environment = {**os.environ, "COVIDSEG_CONF": str(own / "conf"), "PYTHONPATH": str(own / "package")}
    command = [sys.executable, str(ROOT / "src/train.py"), *options, "model=tiny"]
    refused = [*command[:2], *[option for option in options if option != "recipe=smoke"], "model=tiny"]
    done = subprocess.run([*command, "~model.width"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Dice" in done.stdout
    del environment["COVIDSEG_CONF"]
    done = subprocess.run(refused, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "model=tiny: there is no such choice" in done.stderr
