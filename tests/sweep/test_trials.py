"""A search over values: a folder for each trial, and the score that the sweeper looks for."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from covidseg.runs.folder import RunFolder

SWEEPER = '''
"""Tries one value after the other, each chosen by the scores before it, as Optuna and Ax do."""
import json
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Climber(Sweeper):
    def __init__(self, key): self.key = key
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
    def sweep(self, arguments):
        tried, value = {}, 1e-3
        for trial in range(2):
            (done,) = self.launcher.launch([[*arguments, f"{self.key}={value}"]], trial)
            tried[value] = done.return_value
            value *= 10
        print("TRIED", json.dumps(tried))

ConfigStore.instance().store(group="hydra/sweeper", name="climber", provider="test", node={
    "_target_": "hydra_plugins.climber.Climber", "key": "optimizer.lr"})
'''


@pytest.mark.slow
def test_trials_of_a_sweeper_have_folders_of_their_own_and_give_it_their_validation_score(train_options, tmp_path):
    plugins = tmp_path / "plugins" / "hydra_plugins" / "climber"
    plugins.mkdir(parents=True)
    (plugins / "__init__.py").write_text(textwrap.dedent(SWEEPER))
    options = ["training.max_steps=4", "training.validate_every=2", "hydra/sweeper=climber"]
    train = [option for option in train_options if not option.startswith("row=")]
    done = subprocess.run(
        [sys.executable, "-m", "covidseg.cli.train", "-m", *train, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "plugins"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    tried = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TRIED"))[6:])
    folders = {value: RunFolder(tmp_path / f"runs/t/unet3d-optimizer.lr-{value}/lesion/seed0") for value in tried}
    assert list(tried) == ["0.001", "0.01"]
    assert tried == {value: folder.validation_dice for value, folder in folders.items()}
    assert all(isinstance(score, float) for score in tried.values())


def test_a_value_that_is_given_once_names_no_trial(in_process):
    """Hydra's sweeper spells `true` as `True`, and drops quotes: neither makes a trial of a plain option."""
    options = ["dry_run=true", "logger=csv", "trainer.deterministic=true", "data.source.lesion_free=0.50", "seed=0,1"]
    status, out, err = in_process("train", "-m", *options)
    assert status == 0, err
    assert "train/covidsegnet-fv-paspp/lesion/seed0: waiting" in out
    status, out, err = in_process("train", "-m", *options, "optimizer.lr=1e-3,1e-2")
    assert status == 0, err
    assert "train/covidsegnet-fv-paspp-optimizer.lr-0.001/lesion/seed1: waiting" in out
