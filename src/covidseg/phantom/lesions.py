"""COVID-19-like lesions: peripheral, dorsal, patchy ground glass that fades, consolidation against the chest wall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg.phantom.anatomy import MUSCLE, SIDES, Subject
from covidseg.phantom.fields import Lattice, paint, smooth_noise
from covidseg.phantom.lungs import Interior

SUBPLEURAL_MM = 18.0
LABEL_LEVEL = 0.4  # readers draw the border of a fading lesion about where it has lost half of its density


@dataclass(frozen=True)
class Lesion:
    """One focus: an ellipsoid flattened against the pleura, before its border is roughened."""

    centre_zyx: np.ndarray
    radii_zyx: np.ndarray
    added_hu: float  # density that ground glass adds to the lung
    fade: float  # width of the border, as a share of the radius
    solid: float  # how much of it is consolidated, 0 to 1


def draw_lesions(subject: Subject, interior: Interior, severity: float, draw: np.random.Generator) -> list[Lesion]:
    """One to about fifteen foci, more and larger ones with `severity` (0 to 1); most peripheral, dorsal and low."""
    half_y, _ = subject.cage
    z, y, _ = interior.points.T
    peripheral = np.exp(-interior.wall / draw.uniform(5, 12))
    dorsal = np.exp(1.4 * y / half_y)
    low = np.exp(-draw.uniform(0, 1.2) * z / subject.apex)
    weight = peripheral * dorsal * low + 0.01
    count = 1 + draw.poisson(1 + 11 * severity)
    places = draw.choice(len(weight), count, replace=False, p=weight / weight.sum())
    solid_patient = draw.uniform() < 0.55
    lesions = []
    for place in places:
        size = float(np.clip(draw.lognormal(np.log(12 + 16 * severity), 0.5), 4.5, 48))
        radii = size * draw.uniform((0.8, 0.5, 0.55), (1.5, 0.9, 1.0))
        solid = draw.uniform(0.3, 1) if solid_patient and draw.uniform() < 0.5 else 0.0
        lesions.append(Lesion(interior.points[place], radii, draw.uniform(130, 420), draw.uniform(0.35, 1.1), solid))
    return lesions


def infiltrate(
    hu: np.ndarray,
    lesions: list[Lesion],
    lattice: Lattice,
    share: np.ndarray,
    wall: np.ndarray,
    draw: np.random.Generator,
) -> np.ndarray:
    """Paint lesions into the lungs' `share` of `hu`; returns the boolean lesion mask.

    A focus is denser where rough noise says so, so its border is ragged and its inside uneven. Consolidation reaches
    the density of muscle and spreads along the pleura, where no step in density marks the lung's border any more.
    """
    mask = np.zeros(lattice.shape_zyx, bool)
    if not lesions:
        return mask
    rough, fine = smooth_noise(draw, lattice, 11), smooth_noise(draw, lattice, 4.5)
    patches = smooth_noise(draw, lattice, 22)
    for lesion in lesions:
        reach = lesion.radii_zyx * 1.7
        box = lattice.box(lesion.centre_zyx - reach, lesion.centre_zyx + reach)
        if box is None:
            continue
        radius = np.sqrt(
            sum(
                ((axis - np.float32(at)) / np.float32(r)) ** 2
                for axis, at, r in zip(lattice.part(box), lesion.centre_zyx, lesion.radii_zyx, strict=True)
            )
        )
        rim = np.exp(-np.clip(wall[box], 0, None) / SUBPLEURAL_MM)  # denser where it touches the pleura
        edge = 1 - radius + 0.22 * rough[box] + 0.07 * fine[box] + 0.7 * (rim - 0.4)
        glass = np.clip(edge / np.float32(lesion.fade) + 0.5, 0, 1) * np.clip(0.8 + 0.45 * patches[box], 0, 1)
        lung = share[box]
        density = np.float32(lesion.added_hu) * (1 + 0.1 * fine[box] + 0.18 * rough[box])
        hu[box] += lung * glass * np.minimum(density, MUSCLE - 40 - hu[box])
        solid = np.zeros_like(glass)
        if lesion.solid:
            towards_wall = np.clip(1 - (wall[box] - 3) / (10 + 22 * lesion.solid), 0, 1)
            core = edge + 0.9 * towards_wall - 1.25 + 0.7 * lesion.solid + 0.25 * patches[box]
            solid = np.clip(core / 0.3 + 0.5, 0, 1) * (edge > -0.2)
            part = hu[box]
            paint(part, lung * solid, MUSCLE - 12 + 7 * fine[box])
        mask[box] |= (np.maximum(glass, solid) > LABEL_LEVEL) & (lung > 0.5)
    return mask


def imitate(
    hu: np.ndarray,
    subject: Subject,
    lattice: Lattice,
    axes: Sequence[np.ndarray],
    share: np.ndarray,
    wall: np.ndarray,
    draw: np.random.Generator,
) -> None:
    """Paint what a threshold takes for a lesion: atelectasis of the back, scars, fissures, emphysema, effusion."""
    half_y, _ = subject.cage
    slow = smooth_noise(draw, lattice, 26)
    atelectasis = (draw.uniform(5, 14), np.float32(draw.uniform(120, 330))) if draw.uniform() < 0.7 else None
    added = [np.float32(draw.uniform(40, 160)) for _ in SIDES]
    for slab in lattice.slabs():
        z, y, x = (axis[slab] for axis in axes)
        if atelectasis:  # dependent: a soft band along the back
            depth, density = atelectasis
            band = np.clip(1 - wall[slab] / (depth * np.exp(0.4 * slow[slab])), 0, 1)
            hu[slab] += share[slab] * (band * np.clip((y / half_y - 0.35) * 3, 0, 1)) * density
        tilt = (y - 12 + 0.75 * z + 7 * np.sin(x / 28) + 2.5 * slow[slab]) / 1.25
        fissure = share[slab] * np.clip(1.3 - np.abs(tilt), 0, 1)
        for side, density in zip(SIDES, added, strict=True):  # the oblique fissures, thin and curved
            hu[slab] += fissure * (np.sign(x) == side) * density
    for _ in range(draw.poisson(1.2)):  # scars: short dense plates
        at = draw.uniform((-90, -60, -100), (70, 70, 100))
        normal = draw.normal(size=3)
        normal /= np.linalg.norm(normal)
        radius = draw.uniform(10, 24)
        reach = radius + subject.bent_by_mm + max(lattice.spacing_zyx)
        if (box := lattice.box(np.subtract(at, reach), np.add(at, reach))) is None:
            continue
        off = [axis[box] - np.float32(c) for axis, c in zip(axes, at, strict=True)]
        plate = np.abs(sum(o * np.float32(n) for o, n in zip(off, normal, strict=True)))
        close = sum(o**2 for o in off) < np.float32(radius**2)
        paint(hu[box], share[box] * close * np.clip(1.6 - plate / 1.5, 0, 1) * np.float32(0.7), 0.0)
    if draw.uniform() < 0.3:  # emphysema of the upper lobes
        holes = np.clip(smooth_noise(draw, lattice, 9) - 0.9, 0, 1) * np.clip((axes[0] + 10) / 60, 0, 1)
        paint(hu, share * holes, -975.0)
