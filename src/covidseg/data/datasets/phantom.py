"""Computed chest CT, written as a `folder` data set on first use and read from there like anybody's scans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covidseg.data.datasets import Listing
from covidseg.data.datasets.folder import Folder
from covidseg.phantom import phantom_hash, write_phantoms


class Phantoms:
    """`count` phantoms under `<root>/phantom-<hash of the options and of the generator>`."""

    def __init__(self, root: str | Path, count: int, shape_zyx: Sequence[int], seed: int, **options: Any):
        """`options` are those of `write_phantoms`."""
        self.options = {"count": count, "shape_zyx": list(shape_zyx), "seed": seed, **options}
        self.folder = Path(root) / f"phantom-{phantom_hash(self.options)}"

    def compute(self) -> None:
        """Write what is missing of the folder."""
        write_phantoms(self.folder, **self.options)

    def listing(self) -> Listing:
        """List the folder."""
        found = Folder(self.folder, lesions={1: "lesion"}, lungs={1: "lung"}).listing()
        found.sites = frozenset("AB")  # among very few patients, B may get none
        return found
