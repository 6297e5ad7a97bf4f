"""COVID-SegNet and its rivals for chest CT segmentation, as a PyTorch Lightning experiment suite.

    net = covidseg.build_network("covidsegnet", variation="fv", pyramid="paspp")
    mask = covidseg.load("runs/table2/full/lesion/seed0").predict("scan.nii.gz")

Importing the package loads neither torch nor SimpleITK: both names above bring what they need when they are first used.
"""

from importlib import import_module
from typing import Any

import covidseg.system.clock  # noqa: F401 - which starts to count here

__version__ = "0.1.0"
__all__ = ["__version__", "build_network", "load"]

_HOME = {"build_network": "covidseg.config.build", "load": "covidseg.inference.segmenter"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'covidseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
