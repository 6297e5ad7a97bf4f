"""The healthy chest: body wall, ribs, spine, mediastinum, diaphragm, abdomen and the space of the two lungs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self

import numpy as np

from covidseg.phantom.fields import Lattice, ellipsoid, inside, paint, smooth_noise
from covidseg.scans.geometry import triple

Axes = Sequence[np.ndarray]
SIDES = (-1, 1)  # right lung (x < 0), left lung

AIR, FAT, MUSCLE, BLOOD, LIVER, CARTILAGE = -1000.0, -100.0, 52.0, 42.0, 60.0, 110.0
CORTEX, MARROW, DISC = 650.0, 190.0, 75.0


@dataclass(frozen=True)
class Subject:
    """What makes one patient differ from another; lengths in mm."""

    size: float  # of the thorax, 1 = average
    depth: float  # front to back against side to side, 1 = average
    fat: float  # under the skin
    apex: float  # highest point of the lungs
    domes: tuple[float, float]  # tops of the diaphragm, right and left
    heart: tuple[float, float, float]  # radii along z, y, x
    rib_pitch: float
    rib_phase: float
    contrast: float  # HU that contrast medium adds to blood
    lung_hu: float
    gravity_hu: float  # by how much the back of a lung is denser than its front
    bends: tuple[tuple[float, ...], ...]  # slow bending of the whole body, so that nothing is a perfect ellipse

    @classmethod
    def draw(cls, draw: np.random.Generator, contrast: bool) -> Self:
        """A random patient, with contrast medium or without."""
        size = draw.normal(1, 0.06)
        return cls(
            size=float(np.clip(size, 0.85, 1.15)),
            depth=draw.uniform(0.9, 1.12),
            fat=draw.uniform(6, 30),
            apex=118 * size,
            domes=(draw.uniform(-85, -55), draw.uniform(-95, -65)),
            heart=(draw.uniform(50, 62), draw.uniform(40, 50), draw.uniform(52, 66)),
            rib_pitch=draw.uniform(26, 31),
            rib_phase=draw.uniform(0, 28),
            contrast=draw.uniform(90, 220) if contrast else 0.0,
            lung_hu=draw.uniform(-885, -820),
            gravity_hu=draw.uniform(20, 90),
            bends=tuple(
                (
                    float(draw.normal(0, 2.2)),
                    *map(float, draw.uniform(0.012, 0.035, 3)),
                    *map(float, draw.uniform(0, 6.3, 3)),
                )
                for _ in range(6)
            ),
        )

    @property
    def cage(self) -> tuple[float, float]:
        """Half axes of the inner chest wall along y and x, where it is widest."""
        return 93 * self.size * self.depth, 134 * self.size

    @property
    def spine_y(self) -> float:
        return 0.72 * self.cage[0]

    @property
    def bent_by_mm(self) -> float:
        """By how much `bend` moves a place at most, along each axis."""
        return max(abs(self.bends[axis][0]) + abs(self.bends[axis + 3][0]) for axis in range(3))

    def bend(self, axes: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The axes with slow waves of a few mm added: sides that differ, a spine that is not straight."""
        bent = list(axes)
        for i, (height, *rest) in enumerate(self.bends):
            wave = np.float32(height)
            for axis, rate, phase in zip(axes, rest[:3], rest[3:], strict=True):
                wave = wave * np.sin(axis * np.float32(rate) + np.float32(phase))
            bent[i % 3] = bent[i % 3] + wave
        return triple(bent)


def wall_distance(subject: Subject, axes: Axes) -> np.ndarray:
    """Distance to the inner chest wall, positive inside the cage; it closes like a dome above the lungs."""
    z, y, x = axes
    half_y, half_x = subject.cage
    height = np.clip((np.float32(subject.apex) - z) / np.float32(1.15 * subject.apex), 0.001, 1)
    profile = (1 - (1 - height) ** 2.8) ** np.float32(0.5)
    narrowed = half_x * (1 - 0.12 * np.clip(-y / half_y, 0, 1))  # in front
    radius = (np.abs(y / (half_y * profile)) ** 2.2 + np.abs(x / (narrowed * profile)) ** 2.2) ** np.float32(1 / 2.2)
    return (1 - radius) * profile * np.float32((half_y + narrowed) / 2)


def mediastinum_distance(subject: Subject, axes: Axes) -> np.ndarray:
    """Distance to what lies between the lungs (positive inside it): heart, great vessels, spine, and the fat around."""
    z, y, x = axes
    half_y, _ = subject.cage
    width = 13 + 17 * np.exp(-(((z - 35) / 45) ** 2)) + 12 * np.clip(-(z + 20) / 100, 0, 1)  # great vessels; oesophagus
    width = width * (0.5 + 0.5 * np.clip(1.6 + y / half_y, 0, 1))  # narrow behind the sternum
    width = width + 4 * np.sin(z / 13 + subject.rib_phase) + 3 * np.sin(y / 11 + z / 23)
    parts = [
        width - np.abs(x),
        ellipsoid(axes, (-62, -24, 20), subject.heart),
        ellipsoid(axes, (44, -2, 9), (24, 40, 27)),  # aortic arch
        ellipsoid((y, x), (subject.spine_y - 28, 21), (13, 13)) + 0 * z,  # descending aorta
        ellipsoid((y, x), (subject.spine_y, 0), (24, 22)) + 0 * z,  # spine
        ellipsoid(axes, (4, 2, 0), (26, 26, 44)),  # hila
    ]
    return reduce(np.maximum, parts)


def diaphragm_distance(subject: Subject, axes: Axes) -> np.ndarray:
    """Height above the diaphragm: two domes that fall off steeply towards the chest wall."""
    z, y, x = axes
    half_y, half_x = subject.cage
    surfaces = []
    for side, top in zip(SIDES, subject.domes, strict=True):
        off = ((x - side * 0.47 * half_x) / (0.62 * half_x)) ** 2 + ((y + 8) / (1.02 * half_y)) ** 2
        surfaces.append(top - 34 * off - 26 * off**2)
    return (z - np.maximum(*surfaces)) * np.float32(0.8)


@dataclass(frozen=True)
class Distances:
    """Signed distances in mm, positive inside, that several parts of the chest are cut from."""

    skin_side: np.ndarray  # to the chest wall as a cylinder, without the dome above the lungs
    wall: np.ndarray  # to the inner chest wall
    above_diaphragm: np.ndarray
    lung: np.ndarray  # to the pleura

    @classmethod
    def of(cls, subject: Subject, axes: Axes) -> Self:
        """For bent axes."""
        _, y, x = axes
        around = ellipsoid((y, x), (2, 0), subject.cage, 2.4)
        wall = wall_distance(subject, axes)
        above = diaphragm_distance(subject, axes)
        lung = np.minimum(wall - np.float32(2.5), above)
        np.minimum(lung, -mediastinum_distance(subject, axes), out=lung)
        return cls(around, wall, above, lung)


@dataclass(frozen=True)
class Texture:
    """What a healthy body is made of where distances do not say it, on its lattice."""

    angle: np.ndarray  # (1, y, x) around the body's axis, of the lowest slice
    marbling: np.ndarray  # of fat and muscle
    air_level: float  # of the stomach, along y in mm
    parenchyma: np.ndarray  # HU

    @classmethod
    def draw(cls, draw: np.random.Generator, subject: Subject, lattice: Lattice) -> Self:
        """By chance, but for the angle."""
        _, y, x = subject.bend(lattice.part((slice(0, 1), slice(None), slice(None))))
        marbling, air_level = smooth_noise(draw, lattice, 14), -18 - draw.uniform(0, 18)
        parenchyma = 14 * smooth_noise(draw, lattice, 5.0) + 16 * smooth_noise(draw, lattice, 30)
        return cls(np.arctan2(y, x), marbling, air_level, parenchyma)

    def part(self, box: tuple[slice, slice, slice]) -> "Texture":
        """That of a box of voxels."""
        angle = self.angle[:, box[1], box[2]]
        return replace(self, angle=angle, marbling=self.marbling[box], parenchyma=self.parenchyma[box])


def body(
    subject: Subject, lattice: Lattice, straight: Axes, axes: Axes, distances: Distances, texture: Texture
) -> np.ndarray:
    """HU of everything around the lungs, as float32 on bent axes; the lungs' space is filled with mediastinal fat.

    `straight`: the lattice's own axes. These, `axes`, distances and texture may be those of a part of it.
    """
    z, y, x = axes
    edge = lattice.edge_mm
    around, wall = distances.skin_side, distances.wall
    marbling = texture.marbling
    angle = texture.angle
    thickness = subject.fat * (1 + 0.25 * np.sin(3 * angle))
    muscle = 15 + 9 * np.clip(z / subject.apex, 0, 1) + 6 * np.abs(np.sin(2 * angle))
    muscle = muscle + 20 * np.exp(-((x / 48) ** 4)) * (y > 0)  # along the spine
    skin = around + muscle + thickness

    hu = np.full(wall.shape, AIR, np.float32)
    _table(hu, straight, edge, subject.cage[0] + 34 + subject.fat)
    paint(hu, inside(skin, edge), MUSCLE)
    paint(hu, inside(skin - 2, edge), FAT + 12 * marbling)
    paint(hu, inside(around + muscle + 2.5 * marbling, edge), MUSCLE + 6 * marbling)
    between = inside(4 - np.abs(around + 11 + 2 * marbling), edge) * 0.7  # fat between the muscle layers
    paint(hu, between, FAT)
    paint(hu, inside(wall, edge), FAT + 25 + 45 * np.clip(marbling, -1, 1))
    _abdomen(hu, subject, lattice, axes, distances, texture.air_level)
    _mediastinum(hu, subject, lattice, axes, distances)
    _ribs(hu, subject, lattice, axes, distances)
    _spine(hu, subject, lattice, axes)
    return hu


def _table(hu: np.ndarray, straight: Axes, edge_mm: float, back_mm: float) -> None:
    """The table under the patient, which is not bent with them: a curved shell of a few mm."""
    _, y, x = straight
    surface = back_mm + 12 - (x / 190) ** 2 * 45
    paint(hu, np.broadcast_to(inside(2.0 - np.abs(y - surface), edge_mm), hu.shape), -320.0)


def _abdomen(
    hu: np.ndarray,
    subject: Subject,
    lattice: Lattice,
    axes: Axes,
    distances: Distances,
    air_level: float,
) -> None:
    """Below the diaphragm: liver on the right, spleen and stomach with its air on the left."""
    _, y, _ = axes
    edge = lattice.edge_mm
    below = np.minimum(-distances.above_diaphragm, distances.wall) - 2
    paint(hu, inside(below, edge), FAT + 20)
    liver = np.minimum(below, ellipsoid(axes, (subject.domes[0] - 90, -12, -58), (120, 100, 112), 2.5))
    paint(hu, inside(liver, edge), LIVER + subject.contrast * 0.35)
    spleen = ellipsoid(axes, (subject.domes[1] - 45, 0.45 * subject.cage[0], 78), (45, 38, 30))
    paint(hu, inside(np.minimum(below, spleen), edge), 48 + subject.contrast * 0.4)
    stomach = np.minimum(below, ellipsoid(axes, (subject.domes[1] - 32, -18, 62), (34, 42, 38)))
    paint(hu, inside(stomach, edge), 20.0)
    paint(hu, inside(np.minimum(stomach - 4, air_level - y), edge), AIR)


def _mediastinum(hu: np.ndarray, subject: Subject, lattice: Lattice, axes: Axes, distances: Distances) -> None:
    z, y, x = axes
    edge = lattice.edge_mm
    blood = BLOOD + subject.contrast
    above = distances.above_diaphragm + 14
    paint(hu, inside(np.minimum(ellipsoid(axes, (-62, -24, 20), [r - 4 for r in subject.heart]), above), edge), MUSCLE)
    chambers = ellipsoid(axes, (-58, -22, 16), [r - 14 for r in subject.heart])
    paint(hu, inside(np.minimum(chambers, above), edge), blood)
    ring = np.sqrt(np.maximum((y - 5) ** 2 + (z - 32) ** 2, 1)) - 28  # the arch is half a ring in an oblique plane
    arch = 12 - np.sqrt(ring**2 + (x - 9 - 0.22 * (y - 5)) ** 2)
    paint(hu, inside(np.minimum(arch, z - 30), edge), blood)
    tubes = [
        ((subject.spine_y - 28, 21), 12, 40),  # descending aorta, from the arch down
        ((-22, 4), 14, 32),  # ascending aorta
        ((-12, -20), 9, 70),  # superior vena cava
        ((-18, 24), 11, 22),  # pulmonary trunk
    ]
    for (centre_y, centre_x), radius, top in tubes:
        tube = ellipsoid((y, x), (centre_y, centre_x), (radius, radius)) + 0 * z
        bottom = -500 if centre_y > 20 else -40
        paint(hu, inside(np.minimum(tube, np.minimum(top - z, z - bottom)), edge), blood)
    for centre_y, centre_x, radius in ((8, 12, 5), (-2, -26, 5), (2, 30, 6)):  # vessels to the neck and the arms
        tube = ellipsoid((y, x), (centre_y, centre_x), (radius, radius)) + 0 * z
        paint(hu, inside(np.minimum(tube, z - 55 + 0 * tube), edge), blood)
    gullet = ellipsoid((y, x), (subject.spine_y - 36, 3), (6, 9)) + 0 * z
    paint(hu, inside(gullet, edge), 35.0)


def _ribs(hu: np.ndarray, subject: Subject, lattice: Lattice, axes: Axes, distances: Distances) -> None:
    """Rings on the cage that fall towards the front, where they turn into cartilage; and the breastbone."""
    z, y, x = axes
    half_y, half_x = subject.cage
    forward = (1 - np.clip(y / half_y, -1, 1)) / 2  # 0 behind, 1 in front
    height = (z + 62 * forward + subject.rib_phase) / subject.rib_pitch
    off = (height - np.round(height)) * subject.rib_pitch
    radial = np.where(z > 0.35 * subject.apex, distances.wall, distances.skin_side) + 6.5  # upper ribs follow the dome
    across = np.sqrt((radial / 4.2) ** 2 + (off / 6.5) ** 2)
    rib = (1 - across) * 5
    front = np.clip((forward - 0.88) * 25, 0, 1) * (np.abs(x) < 0.62 * half_x)
    edge = lattice.edge_mm
    paint(hu, inside(rib, edge), CORTEX + front * (CARTILAGE - CORTEX))
    paint(hu, inside(rib - 1.8, edge), MARROW + front * (CARTILAGE - MARROW))
    sternum = np.minimum(ellipsoid((y, x), (-half_y - 3, 0), (6.5, 19), 3) + 0 * z, z + 75 + 0 * x + 0 * y)
    paint(hu, inside(sternum, edge), 380.0)
    paint(hu, inside(sternum - 2, edge), MARROW - 40)
    for side in SIDES:  # shoulder blades, above and behind
        tilt = (y - 0.92 * half_y) + 0.45 * (side * x - 0.72 * half_x)
        sides = (3.2 - np.abs(tilt + 22 - 26), side * x - 0.42 * half_x, half_x * 0.98 - side * x, z - 12)
        blade = reduce(np.minimum, sides)
        paint(hu, inside(np.minimum(blade, -distances.skin_side - 8), edge), CORTEX - 150)


def _spine(hu: np.ndarray, subject: Subject, lattice: Lattice, axes: Axes) -> None:
    z, y, x = axes
    edge = lattice.edge_mm
    centre = subject.spine_y
    level = (z / 24 + 0.3) % 1
    disc = inside(4 - np.abs(level - 0.5) * 24, edge)
    vertebra = ellipsoid((y, x), (centre, 0), (15, 18), 2.4) + 0 * z
    paint(hu, inside(vertebra, edge), CORTEX * (1 - disc) + DISC * disc)
    paint(hu, inside(vertebra - 2, edge), MARROW * (1 - disc) + DISC * disc)
    arch = np.minimum(ellipsoid((y, x), (centre + 24, 0), (16, 20)), 9 - np.abs((level - 0.1) * 24))
    paint(hu, inside(arch, edge), CORTEX - 100)
    wings = reduce(np.minimum, (5 - np.abs(y - centre - 20), 34 - np.abs(x), 6 - np.abs((level - 0.1) * 24)))
    paint(hu, inside(wings, edge), MARROW + 180)
    thorn = reduce(np.minimum, (3.5 - np.abs(x), 13 - np.abs(y - centre - 42), 10 - np.abs((level - 0.3) * 24)))
    paint(hu, inside(thorn, edge), MARROW + 200)
    canal = ellipsoid((y, x), (centre + 23, 0), (8, 10)) + 0 * z
    paint(hu, inside(canal, edge), 25.0)
