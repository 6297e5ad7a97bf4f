"""How many windows cover a volume; needs no torch."""

import math
from collections.abc import Sequence


def count_windows(size: Sequence[int], roi: Sequence[int], overlap: float) -> int:
    """Number of windows of `roi` voxels that cover `size` voxels, each covering a share `overlap` of the next."""
    steps = [max(int(window * (1 - overlap)), 1) for window in roi]
    extra = [max(n - window, 0) for n, window in zip(size, roi, strict=True)]
    return math.prod(math.ceil(n / step) + 1 for n, step in zip(extra, steps, strict=True))
