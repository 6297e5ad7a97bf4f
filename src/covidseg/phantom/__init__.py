"""Chest CT phantoms with COVID-19-like lesions, computed from a seed: for tests, the demo and whoever has no scans.

`make_phantom` gives one scan with its labels; `write_phantoms` a whole data set in the layout of `data=folder`.
"""

from covidseg.phantom.make import Phantom, make_phantom
from covidseg.phantom.write import phantom_hash, write_phantoms

__all__ = ["Phantom", "make_phantom", "phantom_hash", "write_phantoms"]
