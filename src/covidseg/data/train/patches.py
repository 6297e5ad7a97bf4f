"""Which patch of which case is trained on next: a pure function of (seed, step, part, rank, slot), nothing to save."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from covidseg.scans.geometry import triple
from covidseg.system.errors import BadInput

AIR_HU = -1024  # what lies outside a scan: patches and inference windows that reach beyond it are padded with this
_ORDER, _PATCHES = 1, 2  # streams of random numbers that share a seed and nothing else


class Case(Protocol):
    """What sampling needs of a `PreparedCase`."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> np.ndarray: ...  # int16 HU (z, y, x)

    @property
    def mask(self) -> np.ndarray: ...  # uint8 (z, y, x)

    @property
    def foreground(self) -> dict[str, np.ndarray]: ...  # per structure (N, 3) int32 z, y, x


@dataclass(frozen=True)
class Patch:
    """A box of a case. Where the case is smaller than the box, `start_zyx` is negative and the rest is padding."""

    case: int
    start_zyx: tuple[int, int, int]


class PatchSampler:
    """Draws patches: uniform crops (IV-C), or with `foreground_probability` around a random voxel of a structure.

    Cases come in seeded random order, each once before any comes again, over all ranks together. `structures` are those
    that a foreground patch may be centred on; a case without any of them gives a uniform crop. `parts`: batches whose
    gradients are accumulated for one step. A part of a rank draws what a further rank would draw, so 1 rank x 3 parts
    trains on the patches of 3 ranks.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        structures: Sequence[str],
        patch_size_zyx: Sequence[int],
        batch_size: int,
        foreground_probability: float,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
    ):
        if not cases:
            raise BadInput("training set", "holds no case", "check splits.json and which structures are annotated")
        if not 0 <= foreground_probability <= 1:
            raise BadInput(
                f"training.foreground_probability={foreground_probability}", "is no probability", "use 0 to 1"
            )
        self.cases, self.structures = list(cases), tuple(structures)
        self.size_zyx, self.batch_size = tuple(int(n) for n in patch_size_zyx), batch_size
        self.foreground_probability, self.seed = foreground_probability, seed
        self.rank, self.ranks, self.parts = rank, ranks, parts

    def patch(self, step: int, slot: int, part: int = 0) -> Patch:
        """The patch in place `slot` of the batch that this rank trains on in `part` of `step` (all from 0)."""
        rank = part * self.ranks + self.rank
        turn, place = divmod((step * self.ranks * self.parts + rank) * self.batch_size + slot, len(self.cases))
        case = int(_order(self.seed, turn, len(self.cases))[place])
        rng = np.random.default_rng((_PATCHES, self.seed, step, rank, slot))
        gap = np.subtract(self.cases[case].image.shape, self.size_zyx)
        low, high = np.minimum(gap, 0), np.maximum(gap, 0)
        start = rng.integers(low, high, endpoint=True)
        if rng.random() < self.foreground_probability and (voxels := self._foreground(case, rng)) is not None:
            start = np.clip(voxels[rng.integers(len(voxels))] - np.floor_divide(self.size_zyx, 2), low, high)
        return Patch(case, triple(int(n) for n in start))

    def batch(self, step: int, image: np.ndarray, mask: np.ndarray, part: int = 0) -> list[str]:
        """Fill `image` (B, 1, D, H, W) int16 and `mask` (same, uint8) with a part of `step`; gives the case ids."""
        ids = []
        for slot in range(self.batch_size):
            patch = self.patch(step, slot, part)
            case = self.cases[patch.case]
            crop(case.image, patch.start_zyx, image[slot, 0], AIR_HU)
            crop(case.mask, patch.start_zyx, mask[slot, 0], 0)
            ids.append(case.id)
        return ids

    def _foreground(self, case: int, rng: np.random.Generator) -> np.ndarray | None:
        present = [found for name in self.structures if len(found := self.cases[case].foreground[name])]
        return present[rng.integers(len(present))] if present else None


def crop(volume: np.ndarray, start_zyx: Sequence[int], out: np.ndarray, fill: int) -> None:
    """Copy the box of `out`'s shape that starts at `start_zyx` (may be negative) into `out`; `fill` lies outside."""
    begin = [min(max(first, 0), m) for first, m in zip(start_zyx, volume.shape, strict=True)]
    end = [min(max(first + n, 0), m) for first, n, m in zip(start_zyx, out.shape, volume.shape, strict=True)]
    if tuple(b - a for a, b in zip(begin, end, strict=True)) != out.shape:
        out.fill(fill)
    inside = tuple(slice(a - first, b - first) for a, b, first in zip(begin, end, start_zyx, strict=True))
    out[inside] = volume[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))]


@lru_cache(maxsize=64)
def _order(seed: int, turn: int, cases: int) -> np.ndarray:
    """In which order the cases come in their `turn`-th round."""
    return np.random.default_rng((_ORDER, seed, turn)).permutation(cases)
