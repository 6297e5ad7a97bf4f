"""Where classes are now that the configuration of an older run names elsewhere."""

from collections.abc import Mapping
from typing import Any

_MOVED = {  # module -> module
    "covidseg.data.augment": "covidseg.data.train.augment",
    "covidseg.losses": "covidseg.training.losses",
    "covidseg.schedules": "covidseg.training.schedules",
}


def with_present_names(node: Any) -> Any:
    """Plain containers with every `_target_` of an older version replaced by its present name."""
    if isinstance(node, list):
        return [with_present_names(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _present(value) if key == "_target_" else with_present_names(value) for key, value in node.items()}


def _present(name: Any) -> Any:
    module, dot, attribute = str(name).rpartition(".")
    return f"{_MOVED[module]}{dot}{attribute}" if module in _MOVED else name
