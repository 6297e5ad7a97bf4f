"""An option that nobody reads is refused, whoever gives it."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from covidseg.config import options
from covidseg.config.options import refuse_unknown
from covidseg.config.paths import CONF, EXPERIMENTS
from covidseg.system.errors import BadInput

COMMANDS = [file.stem for file in sorted(CONF.glob("*.yaml"))]


def composed(command, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_of_every_group_holds_only_what_is_known(command):
    groups = {folder.relative_to(CONF).as_posix() for folder in CONF.rglob("*") if folder.is_dir()} - {"local"}
    choices = [f"{group}={file.stem}" for group in sorted(groups) for file in sorted((CONF / group).glob("*.yaml"))]
    rows = [f"experiments/{file.parent.name}={file.stem}" for file in sorted(EXPERIMENTS.glob("*/*.yaml"))]
    refuse_unknown(composed(command), command)
    if command == "train":
        for choice in (*(c for c in choices if "/" not in c.partition("=")[0] and "sweep" not in c), *rows):
            refuse_unknown(composed(command, choice), command)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["token", "training.patience", "paths.dta"])
def test_an_unknown_option_is_refused_by_every_command(command, option):
    with pytest.raises(
        BadInput, match=f"^({option}|{option.split('.')[0]}): there is no such option -> .*--help|early"
    ):
        refuse_unknown(composed(command, f"+{option}=3"), command)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("trainer.max_epochs", "training.max_steps=3"),
        ("training.patience", "callbacks=early_stopping callbacks.early_stopping.patience=3"),
        ("optimizer.learning_rate", "optimizer.lr=0.1"),
        ("trainer.gradient_clip_val", "training.gradient_clip=1.0"),
        ("trainer.val_check_interval", "training.validate_every=2"),
        ("trainer.gpus", "trainer.devices=2"),
        ("trainer.fast_dev_run", "recipe=smoke"),
        ("model.batch_size", "training.batch_size=2"),
    ],
)
def test_what_lightning_users_try_first_is_answered_with_what_works(option, remedy):
    advice = options.instead(option, "train")
    assert all(part.split("=")[0] in advice for part in remedy.split())
    refuse_unknown(composed("train", *remedy.split()), "train")


def test_an_option_of_a_group_that_was_not_chosen(in_process):
    status, _, err = in_process("evaluate", "predictions=masks", "data.root=scans")
    assert (status, err) == (2, "error: data: there is no such option -> choose it first, as data=covid19_20\n")


def test_all_that_is_advised_exists():
    known = set(options.known_options("train"))
    for advice in options._INSTEAD.values():
        for word in advice.replace(",", " ").split():
            key = word.split("=")[0]
            if "." in key.strip(".") and "=" in word:
                assert key in known, advice


def test_a_file_of_this_machine_serves_all_commands_and_may_not_misspell(tmp_path, monkeypatch):
    own = tmp_path / "local"
    own.mkdir()
    (own / "default.yaml").write_text("# @package _global_\npaths: {data: /a, runs: /b}\ntrainer: {devices: 2}\n")
    monkeypatch.setenv("COVIDSEG_CONF", str(tmp_path))
    for command in COMMANDS:
        refuse_unknown(composed(command), command)
    (own / "default.yaml").write_text("# @package _global_\npaths: {data: /a, rnus: /b}\n")
    options._meant_for_others.cache_clear()
    with pytest.raises(BadInput, match=r"paths\.rnus"):
        refuse_unknown(composed("train"), "train")


def test_the_command_line_refuses_it_in_one_line(tmp_path):
    command = [sys.executable, "-m", "covidseg.cli.train"]
    for arguments in (["+trainer.max_epochs=1"], ["-m", "seed=0,1", "+trainer.max_epochs=1"], ["trainer.max_epochs=1"]):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        wanted = "error: trainer.max_epochs: there is no such option -> training.max_steps is the length of a run"
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(wanted), done.stderr
        assert done.stderr.count("\n") == 1 and not list(tmp_path.glob("runs/*/*/config.yaml"))
