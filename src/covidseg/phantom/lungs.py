"""What fills the lungs: parenchyma, vessels, airways, and things that look like lesions and are none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg.phantom.anatomy import AIR, BLOOD, SIDES, Distances, Subject, Texture
from covidseg.phantom.fields import Lattice, inside, paint
from covidseg.phantom.trees import MURRAY, Tree, draw_tubes, grow
from covidseg.scans.geometry import triple

COARSE_MM = 8.0  # between the places where twigs may end and lesions begin
FINE_MM = 2.5  # voxels up to this size show every twig
TREES = {  # twigs in each lung, their radius in mm, where the tree enters the left lung (mirrored for the right)
    "arteries": (260, 0.75, (4, 0, 30)),
    "veins": (200, 0.75, (-12, -6, 28)),
    "airways": (40, 1.0, (0, 8, 32)),
}
HILUM_RADIUS_MM = 4.5  # vessels wider than this belong to the hilum, not to the lung mask
CARINA_ZYX = (26.0, 8.0, 0.0)


@dataclass(frozen=True)
class Interior:
    """The branching things of one patient's lungs, in bent coordinates."""

    arteries: Tree
    veins: Tree
    airways: Tree
    trachea: Tree  # and the two main bronchi, outside the lungs
    points: np.ndarray  # (N, 3) places in the lungs, evenly spread, mm
    wall: np.ndarray  # (N,) how far each is from the chest wall

    @classmethod
    def draw(cls, subject: Subject, draw: np.random.Generator, voxel_mm: float) -> "Interior":
        """Grow the trees of both lungs, each from its hilum; coarse voxels get fewer and wider twigs."""
        detail = min(1.0, FINE_MM / voxel_mm)
        half_y, half_x = subject.cage
        size = np.array([subject.apex + 150, 2 * half_y, 2 * half_x])
        shape = triple(int(n) for n in size // COARSE_MM)
        chest = Lattice(shape, (COARSE_MM,) * 3, ((subject.apex - 150) / 2, 0.0, 0.0))
        distances = Distances.of(subject, chest.axes)
        where = np.argwhere(distances.lung > 2)
        points = np.stack([axis.ravel()[i] for axis, i in zip(chest.axes, where.T, strict=True)], axis=1)
        points = points + draw.uniform(-COARSE_MM / 2, COARSE_MM / 2, points.shape)
        wall = distances.wall[tuple(where.T)]
        trees: dict[str, Tree] = {"trachea": _trunk(CARINA_ZYX, (subject.apex + 60, 2.0, 0.0), 9.0)}
        for side in SIDES:
            own = points[np.sign(points[:, 2]) == side]
            for kind, (count, twig_mm, root_zyx) in TREES.items():
                leaves = own[draw.choice(len(own), round(count * detail), replace=False)]
                root = np.array(root_zyx) * (1, 1, side) + draw.normal(0, 2, 3)
                tree = grow(draw, root, leaves, twig_mm / detail ** (1 / MURRAY))
                trees[kind] = trees[kind].joined(tree) if kind in trees else tree
                if kind == "airways":
                    trees["trachea"] = trees["trachea"].joined(_trunk(CARINA_ZYX, root, 6.5))
        straight = {
            kind: Tree(_unbent(subject, tree.start), _unbent(subject, tree.end), tree.radius)
            for kind, tree in trees.items()
        }
        return cls(**straight, points=_unbent(subject, points), wall=wall)


def _unbent(subject: Subject, points: np.ndarray) -> np.ndarray:
    """Where in the scan the places (N, 3) of the straight anatomy lie."""
    moved = np.stack(subject.bend(list(points.T)), axis=1)
    return 2 * points - moved


def _trunk(start: Sequence[float], end: Sequence[float] | np.ndarray, radius: float) -> Tree:
    return Tree(np.array([start], float), np.array([end], float), np.array([radius]))


def fill(
    hu: np.ndarray,
    subject: Subject,
    lattice: Lattice,
    axes: Sequence[np.ndarray],
    distances: Distances,
    texture: Texture,
) -> np.ndarray:
    """Paint healthy parenchyma into `hu`; returns the share of each voxel that is lung."""
    _, y, _ = axes
    share = inside(distances.lung, lattice.edge_mm)
    backwards = np.clip((y / subject.cage[0] + 1) / 2, 0, 1)
    paint(hu, share, subject.lung_hu + subject.gravity_hu * (backwards - 0.3) + texture.parenchyma)
    return share


def plumb(hu: np.ndarray, subject: Subject, interior: Interior, lattice: Lattice, share: np.ndarray) -> None:
    """Paint vessels and airways into `hu`, over whatever lesion is there: both stay visible in ground glass."""
    lung = share > 0
    for tree in (interior.arteries, interior.veins):
        hu += draw_tubes(lattice, tree) * lung * np.maximum(BLOOD + subject.contrast - hu, 0)
    for tree, where in ((interior.airways, lung), (interior.trachea, np.float32(1))):
        hu += draw_tubes(lattice, tree, wider_mm=1.0) * where * np.maximum(20 - hu, 0)
        paint(hu, draw_tubes(lattice, tree) * where, AIR + 15)


def hilum(interior: Interior, lattice: Lattice) -> np.ndarray:
    """Boolean mask of the vessels and bronchi that readers leave out of the lungs because they are wide."""
    wide = [interior.trachea, interior.airways.wider_than(2.2)]
    wide += [tree.wider_than(HILUM_RADIUS_MM) for tree in (interior.arteries, interior.veins)]
    share = draw_tubes(lattice, wide[0])
    for tree in wide[1:]:
        np.maximum(share, draw_tubes(lattice, tree), out=share)
    return share > 0.5
