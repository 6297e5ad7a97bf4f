import itertools

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from covidseg.config.paths import CONF
from covidseg.evaluation.structures import Structure, Task
from covidseg.system.errors import BadInput

TASKS = sorted((CONF / "task").glob("*.yaml"))


def load(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Task.from_config(compose("train", overrides=[f"task={path.stem}"]).task)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_what_is_taught_as_a_structure_is_what_is_scored_as_it(path):
    """A network that gives back its training target has each structure right."""
    task, labels = load(path), np.array([0, 1, 2], np.uint8)
    classes = task.target(torch.from_numpy(labels)).numpy()
    for part in task.structures.values():
        np.testing.assert_array_equal(part.in_prediction(classes), part.in_reference(labels))


@pytest.mark.parametrize(
    ("target", "labels"), itertools.product([(0, 0, 1), (0, 1, 1), (0, 1, 0)], [(1,), (2,), (1, 2)])
)
def test_a_task_that_teaches_one_thing_and_scores_another_is_refused(target, labels):
    structures = {"lesion": Structure((1,), labels, 3.0)}
    if tuple(label for label in range(3) if target[label]) == labels:
        assert Task("lesion", 2, target, structures).structures == structures
    else:
        with pytest.raises(BadInput, match=r"task\.structures\.lesion\.labels: .* are scored, and .* teaches"):
            Task("lesion", 2, target, structures)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_one_structure_alone_is_binary(path):
    for name, part in load(path).structures.items():
        alone = load(path).alone(name)
        assert list(alone.structures) == [name] and alone.structures[name].labels == part.labels
        np.testing.assert_array_equal(alone.structures[name].in_prediction(np.array([0, 1])), [False, True])
