"""Why the figures of a scan should not be believed as they are: what no chest holds, what is missing, what was cut off.

A flag is a key, for programs, and a sentence with its number, for people. None of them changes a figure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from covidseg.scans.geometry import Geometry

# Total lung capacity of men is 7.99 l a metre of height less 7.08 l, with a standard deviation of 0.70 l (Quanjer et
# al., Eur Respir J 1993; 6 Suppl 16: 5-40): 10.1 l at 2.15 m, and 11.5 l there for the upper one in forty.
CHEST_ML = 12_000
SMALL_SIDE = 0.25  # of the larger lung: the left one has about 0.85 of the right one's volume
CUT_SHARE = 0.1  # of the largest section of a mask: what its outermost slice may hold where the scan ends behind it
GAP = 1.05  # slices this much further apart than they are thick leave something out
ASTRAY = 0.25  # of the lesion outside the lung mask, from which on one of the two masks is doubtful
EIGHT_BIT_VALUES = 256
# Why `quantify` leaves figures undefined, where a rule asks for it.
NO_LUNG_MASK, NOT_TOLD_APART = "no lung mask", "left and right cannot be told apart"
EIGHT_BIT = "the scan has 8-bit grey values: too coarse to tell densities"


@dataclass(frozen=True)
class Findings:
    """What is known of one scan. Masks, boolean (z, y, x), and voxels lie on `geometry`; what is None is not known."""

    figures: Mapping[str, Any]  # of `quantify`, or some of them
    lung: np.ndarray | None = None  # the entire lungs
    lesion: np.ndarray | None = None
    hu: np.ndarray | None = None
    geometry: Geometry | None = None
    thickness_mm: float | None = None  # of a slice, where the file says it

    def ml(self, name: str) -> float:
        """A volume in ml; 0 where it is not known."""
        return self.figures.get(f"{name}_ml") or 0.0

    def lacks(self, name: str) -> str:
        """Why a figure is undefined, or nothing."""
        return self.figures.get("undefined", {}).get(name, "")


def flags(findings: Findings) -> list[dict[str, str]]:
    """[{"key": ..., "text": ...}] of the rules that apply, in the order of `RULES`."""
    found = ((key, rule(findings)) for key, rule in RULES.items())
    return [{"key": key, "text": text} for key, text in found if text]


def grey_values(hu: np.ndarray) -> int:
    """How many different values an int16 scan holds."""
    seen = np.zeros(2**16, bool)
    for plane in hu:
        seen[plane.astype(np.uint16)] = True  # modulo 2^16, which keeps int16 values apart
    return int(np.count_nonzero(seen))


def _lung_volume(findings: Findings) -> str:
    return _beyond_a_chest("lung", findings.ml("lung"))


def _lesion_volume(findings: Findings) -> str:
    return _beyond_a_chest("lesion", findings.ml("lesion"))


def _beyond_a_chest(name: str, ml: float) -> str:
    return f"{ml / 1000:.1f} l of {name} are more than a chest holds ({CHEST_ML / 1000:g} l)" if ml > CHEST_ML else ""


def _lesion_beyond_lungs(findings: Findings) -> str:
    lung, lesion = findings.ml("lung"), findings.ml("lesion")
    return f"{lesion:.0f} ml of lesion are more than the lungs have ({lung:.0f} ml)" if lesion > lung > 0 else ""


def _lesion_outside_lungs(findings: Findings) -> str:
    outside, lesion = findings.ml("lesion_outside_lung"), findings.ml("lesion")
    if not outside > ASTRAY * lesion:
        return ""
    return f"{outside:.1f} of {lesion:.1f} ml lesion lie outside the lung mask, and in no share: check both masks"


def _missing_lung(findings: Findings) -> str:
    if findings.lacks("left_lung_ml") == NOT_TOLD_APART:
        return f"{findings.ml('lung'):.0f} ml of lung are not told apart into left and right: is one of them missing?"
    sides = {side: findings.ml(f"{side}_lung") for side in ("left", "right")}
    small, large = sorted(sides, key=sides.__getitem__)
    if not sides[small] < SMALL_SIDE * sides[large]:
        return ""
    return f"the {small} lung has {sides[small]:.0f} ml and the {large} one {sides[large]:.0f} ml: is it missing?"


def _no_lung(findings: Findings) -> str:
    if findings.lung is None or findings.lung.any():
        return ""
    return "the lung mask is empty (0 ml), so there is no infection share"


def _no_lung_mask(findings: Findings) -> str:
    if findings.lesion is None or findings.lacks("infection_share") != NO_LUNG_MASK:
        return ""
    return f"{findings.ml('lesion'):.1f} ml of lesion are no infection share: there is no lung mask"


def _cut_off(findings: Findings) -> str:
    """Lungs, or lesions where there is no lung mask, that go on beyond the scan: an outermost slice is full of them."""
    name, mask = ("lungs", findings.lung) if findings.lung is not None else ("lesions", findings.lesion)
    if mask is None or findings.geometry is None or not mask.any():
        return ""
    canonical = findings.geometry.canonical()
    cm2 = np.count_nonzero(findings.geometry.to_canonical(mask), axis=(1, 2)) * np.prod(canonical.spacing_zyx[1:]) / 100
    ends = {"bottom": cm2[0], "top": cm2[-1]}
    cut = [f"{area:.1f} cm2 in its {end} slice" for end, area in ends.items() if area > CUT_SHARE * cm2.max()]
    return f"the {name} go on beyond the scan ({', '.join(cut)}): their volume is too small" if cut else ""


def _slice_gap(findings: Findings) -> str:
    if findings.geometry is None or findings.thickness_mm is None:
        return ""
    thickness, step = findings.thickness_mm, findings.geometry.spacing_zyx[0]
    if step <= GAP * thickness:
        return ""
    return f"slices of {thickness:g} mm lie {step:g} mm apart: what is between them was not seen"


def _eight_bit(findings: Findings) -> str:
    if findings.hu is None or findings.lacks("consolidation_ml") != EIGHT_BIT:
        return ""
    count = grey_values(findings.hu)
    return f"the scan has {count} grey values, as 8-bit images do: ground glass and consolidation are not told apart"


RULES: dict[str, Callable[[Findings], str]] = {  # the keys are part of the output: they stay
    "lung_volume": _lung_volume,
    "lesion_volume": _lesion_volume,
    "lesion_beyond_lungs": _lesion_beyond_lungs,
    "lesion_outside_lungs": _lesion_outside_lungs,
    "missing_lung": _missing_lung,
    "no_lung": _no_lung,
    "no_lung_mask": _no_lung_mask,
    "cut_off": _cut_off,
    "slice_gap": _slice_gap,
    "eight_bit": _eight_bit,
}
