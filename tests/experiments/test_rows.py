"""Every row of the tables: short, composed by name, built, trained for a step."""

import functools

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from covidseg.blocks.pyramid import ASPP, PASPP, ResASPP
from covidseg.blocks.variation import ChannelAttention, ContrastEnhancement, FeatureVariation, PositionSensitive
from covidseg.config.build import instantiate
from covidseg.config.paths import CONF, EXPERIMENTS
from covidseg.nets.cost import meta_network, parameters
from covidseg.system.files import read_json

ROWS = [(file.parent.name, file.stem) for file in sorted(EXPERIMENTS.glob("*/*.yaml"))]
TABLES = [row for row in ROWS if row[0] != "recipe"]
TABLE_1 = {"fcn", "fdfcn", "unet3d", "vnet", "unetpp", "covidsegnet"}
TABLE_2 = {"unet4", "cab", "ceb", "psb", "fv", "aspp", "resaspp", "paspp", "full", "fv_ungated"}
BLOCKS = {ChannelAttention, ContrastEnhancement, PositionSensitive, ASPP, ResASPP, PASPP}


@functools.cache
def composed(table, row):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[f"experiments/{table}={row}"])


def small_network(table, row):
    config = composed(table, row).copy()
    config.model.width = 8 if table == "table3" else 4  # SegResNet's groups
    return instantiate(config.model, "model")


def test_the_rows_are_those_of_the_paper():
    assert {row for table, row in ROWS if table == "table1"} == TABLE_1
    assert {row for table, row in ROWS if table == "table2"} == TABLE_2


@pytest.mark.parametrize("table, row", ROWS)
def test_a_row_is_a_short_file_that_says_its_place(table, row):
    assert len((EXPERIMENTS / table / f"{row}.yaml").read_text().splitlines()) <= 14
    config = composed(table, row)
    assert (config.name, config.row) == (table, row)


@pytest.mark.parametrize("table, row", ROWS)
def test_a_row_trains_a_step(table, row):
    network = small_network(table, row)
    optimizer = torch.optim.Adam(network.parameters())
    before = [parameter.detach().clone() for parameter in network.parameters()]
    logits = network(torch.randn(2, 1, 32, 32, 64))
    heads = logits if isinstance(logits, list) else [logits]
    target = torch.randint(0, 2, (2, 32, 32, 64))
    sum(torch.nn.functional.cross_entropy(head, target) for head in heads).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
    assert any((old != new).any() for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    "row, blocks",
    [
        ("unet4", set()),
        ("cab", {ChannelAttention}),
        ("ceb", {ContrastEnhancement}),
        ("psb", {PositionSensitive}),
        ("fv", {ContrastEnhancement, PositionSensitive}),
        ("fv_ungated", {ContrastEnhancement, PositionSensitive}),
        ("aspp", {ASPP}),
        ("resaspp", {ResASPP}),
        ("paspp", {PASPP}),
        ("full", {ContrastEnhancement, PositionSensitive, PASPP}),
    ],
)
def test_a_row_of_table_2_has_its_blocks(row, blocks):
    modules = list(small_network("table2", row).modules())
    assert BLOCKS & {type(module) for module in modules} == blocks
    assert {m.gated for m in modules if isinstance(m, FeatureVariation)} <= {row != "fv_ungated"}


def test_the_published_numbers_of_parameters_are_those_of_the_rows():
    published = {
        (row["table"], row["row"]): row["parameters"] for row in read_json(EXPERIMENTS / "networks.json")["rows"]
    }
    assert published == {row: parameters(meta_network(composed(*row).model)) for row in TABLES}


def test_the_last_row_of_table_2_is_ours_of_table_1():
    full, ours = (
        OmegaConf.to_container(composed(*row).model, resolve=True)
        for row in (("table2", "full"), ("table1", "covidsegnet"))
    )
    assert full == ours


def test_the_rows_differ_in_their_model_only():
    configs = [OmegaConf.to_container(composed(*row), resolve=False) for row in TABLES]
    for config in configs:
        for key in ("model", "name", "row"):
            config.pop(key)
    assert all(config == configs[0] for config in configs)


def test_a_row_of_the_recipe_changes_one_part():
    """But for deep supervision, its heads and what they weigh, and for the two that are tried together."""
    parts = {}
    base = OmegaConf.to_container(composed("recipe", "base"), resolve=False)
    for table, row in ROWS:
        if table == "recipe":
            config = OmegaConf.to_container(composed(table, row), resolve=False)
            parts[row] = {key for key in config if config[key] != base[key]} - {"row"}
    assert parts.pop("base") == set() and parts.pop("deep_supervision") == {"model", "loss"}
    assert parts.pop("ema_fg_all") == parts["ema"] | parts["fg_all"]
    assert parts.pop("chosen") == parts["no_warmup"] | parts["fg_third"]
    assert {len(changed) for changed in parts.values()} == {1}
