"""One colour for each method, the same in every figure and in the viewer.

Sixteen that stay apart for eyes without red, green or blue cones (Machado, Oliveira & Fernandes, IEEE TVCG 2009,
15:1291), from each other and from the reference's red: at least 19 in CIE Lab, found by search and held by a test.
None is near grey, so that a contour shows on a scan.
"""

from collections.abc import Sequence

REFERENCE_COLOUR = "#ff2d20"  # red, as in the paper
METHOD_COLOURS = (
    "#1e78b4", "#d2d200", "#1ef096", "#782dd2", "#a578ff", "#d287b4", "#00b478", "#6900ff",
    "#b4e169", "#874b78", "#96a54b", "#96a5f0", "#ffc3ff", "#96e1c3", "#b41e1e", "#963c4b",
)  # fmt: skip


def colours(count: int) -> Sequence[str]:
    """So many, from the first on; beyond sixteen they come again."""
    return [METHOD_COLOURS[at % len(METHOD_COLOURS)] for at in range(count)]
