"""What conf/ offers, from the listing of its folders: a new YAML file meets the contract tests by itself."""

import functools

import torch
from omegaconf import OmegaConf

from covidseg import build_network
from covidseg.config.paths import CONF
from covidseg.system.errors import BadInput


def choices(group):
    """The names of a config group, `model/variation` for instance."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def configured(network):
    """A network's YAML file, its defaults list not followed."""
    return OmegaConf.load(CONF / "model" / f"{network}.yaml")


NETWORKS = choices("model")
VARIATIONS, PYRAMIDS = choices("model/variation"), choices("model/pyramid")
SLOTTED = [name for name in NETWORKS if "defaults" in configured(name)]  # they take a variation and a pyramid
RECOMPUTING = [name for name in NETWORKS if "checkpoint_activations" in configured(name)]
OURS = [name for name in NETWORKS if "constructor" not in configured(name)]  # the others are another library's


@functools.cache
def narrowest(name, width=4):
    """The smallest width from `width` on that a network takes: norms in groups and attention ask for multiples."""
    for wider in (width, 2 * width, 4 * width):
        try:
            with torch.device("meta"):
                build_network(name, width=wider)
        except BadInput as error:
            if "width" not in str(error):
                return wider
        else:
            return wider
    raise AssertionError(f"{name} takes none of {width}, {2 * width}, {4 * width} as its width")


def small_network(name, width=4, **options):
    """The network of that name, as narrow as it can be."""
    return build_network(name, width=narrowest(name, width), **options)
