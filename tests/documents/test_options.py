"""An option that a document names is one that a command takes, and what `--help` prints shows no other command."""

import functools

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from covidseg.cli import COMMANDS
from covidseg.config.paths import CONF, EXPERIMENTS
from documents import all_commands, commands_in, documents, options_of

CONFIGS = [("train", ()), ("evaluate", ("data=folder",)), ("predict", ()), ("prepare", ()), ("report", ())]
CONFIGS += [("status", ()), ("benchmark", ())]
CONFIGS += [
    ("train", (f"{group}={path.stem}",))
    for group in ("model", "data", "optimizer", "launcher", "logger", "recipe")
    for path in sorted((CONF / group).glob("*.yaml"))
]
OPTIONS = [
    pytest.param(option, id=f"{path.name}:{line}: {option}")
    for path in documents()
    if path.suffix in (".md", ".yaml")
    for line, option in dict.fromkeys(options_of(path))
]


@functools.cache
def composed(name, overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def is_choice(key, value):
    """Whether the option chooses files of a config group that are there."""
    folder = EXPERIMENTS.parent / key if key.startswith("experiments/") else CONF / key
    if not folder.is_dir():
        return False
    return value in ("...", "null", "glob(*)") or all((folder / f"{name}.yaml").is_file() for name in value.split(","))


def is_key(key):
    """Whether one of the commands has the key, whatever its value; a mapping may get a key of its own by `+`."""
    for name, overrides in CONFIGS:
        config = composed(name, overrides)
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        if OmegaConf.is_dict(parent) and key.rpartition(".")[2] in parent:
            return True
    return False


def test_there_are_options():
    assert len(OPTIONS) > 30


@pytest.mark.parametrize("option", OPTIONS)
def test_a_named_option_exists(option):
    key, _, value = option.strip("'").lstrip("+").partition("=")
    assert is_choice(key, value) or is_key(key)


@pytest.mark.parametrize("name", ["report", "status", "benchmark"])
def test_help_of_a_command_without_groups_is_its_own_options_and_an_example(in_process, name):
    status, out, _ = in_process(name, "--help")
    assert status == 0 and f"`python src/{name}.py" in out and "debug: false" in out
    assert not any(word in out for word in ("augment: ", "hydra:", "defaults", "job_logging"))
    own = (CONF / f"{name}.yaml").read_text().partition("\nhydra:")[0]
    comments = [line.partition("#")[2].strip() for line in own.splitlines() if "#" in line]
    assert comments and all(comment in out for comment in comments)


@pytest.mark.parametrize("name", [*COMMANDS, "baseline"])
def test_help_names_no_command_that_is_not_tried(in_process, name):
    status, out, _ = in_process(name, "--help")
    assert status == 0 and "== Config ==" in out
    assert {command.text for command in commands_in(out, name)} <= {command.text for command in all_commands()}
