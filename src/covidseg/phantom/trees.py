"""Branching trees that fill a lung: arteries, veins and airways."""

from dataclasses import dataclass

import numpy as np

from covidseg.phantom.fields import Lattice

MURRAY = 2.7  # a branch of radius r splits into branches with r^2.7 = sum of theirs


@dataclass(frozen=True)
class Tree:
    """Straight pieces of tubes: ends (N, 3) in z, y, x mm, radii (N,) in mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray

    def joined(self, other: "Tree") -> "Tree":
        """Both trees as one."""
        return Tree(*(np.concatenate([getattr(self, k), getattr(other, k)]) for k in ("start", "end", "radius")))

    def wider_than(self, radius_mm: float) -> "Tree":
        """The tubes wider than a radius."""
        kept = self.radius > radius_mm
        return Tree(self.start[kept], self.end[kept], self.radius[kept])


def grow(draw: np.random.Generator, root: np.ndarray, points: np.ndarray, twig_mm: float) -> Tree:
    """A tree from `root` (3,) to every region of `points` (N, 3), with twigs of radius `twig_mm`.

    Each branch runs towards the middle of the points it supplies, then hands them on in two halves, cut by a plane
    that holds the branch; so the tree fills its lung as a bronchial tree does (Kitaoka et al. 1999, simplified).
    """
    starts, ends, radii = [], [], []

    def branch(node: np.ndarray, supplied: np.ndarray, depth: int) -> float:
        middle = supplied.mean(axis=0)
        reach = 1.0 if len(supplied) == 1 else draw.uniform(0.35, 0.55)
        tip = node + (middle - node) * reach + draw.normal(0, 0.06, 3) * np.linalg.norm(middle - node)
        if len(supplied) == 1 or depth > 14:
            radius = twig_mm * draw.uniform(0.7, 1.3)
        else:
            spread = supplied - supplied.mean(axis=0)
            along = middle - node
            along /= max(np.linalg.norm(along), 1e-6)
            spread = spread - np.outer(spread @ along, along)
            across = np.linalg.eigh(spread.T @ spread)[1][:, -1] + draw.normal(0, 0.15, 3)  # where they spread most
            order = np.argsort(spread @ across)
            cut = int(np.clip(len(order) * draw.uniform(0.35, 0.65), 1, len(order) - 1))
            children = [branch(tip, supplied[half], depth + 1) for half in (order[:cut], order[cut:])]
            radius = sum(child**MURRAY for child in children) ** (1 / MURRAY)
        starts.append(node)
        ends.append(tip)
        radii.append(radius)
        return radius

    branch(np.asarray(root, float), np.asarray(points, float), 0)
    return Tree(np.array(starts), np.array(ends), np.array(radii))


def draw_tubes(lattice: Lattice, tree: Tree, wider_mm: float = 0.0) -> np.ndarray:
    """Share of each voxel inside the tubes (widened by `wider_mm`), float32; thinner than a voxel means paler."""
    share = np.zeros(lattice.shape_zyx, np.float32)
    edge = lattice.edge_mm
    for start, end, radius in zip(tree.start, tree.end, tree.radius + wider_mm, strict=True):
        drawn = max(radius, 0.5 * edge)  # no tube falls between the voxels ...
        pale = np.float32(min(1.0, (radius / drawn) ** 2))  # ... and a thin one fills them only in part
        reach = drawn + edge
        box = lattice.box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if box is None:
            continue
        along = end - start
        length = max(float(along @ along), 1e-6)
        offsets = [axis - np.float32(at) for axis, at in zip(lattice.part(box), start, strict=True)]
        at = np.clip(sum(o * np.float32(a / length) for o, a in zip(offsets, along, strict=True)), 0, 1)
        squared = sum((o - at * np.float32(a)) ** 2 for o, a in zip(offsets, along, strict=True))
        tube = np.clip((np.float32(drawn) - np.sqrt(squared)) / np.float32(edge) + np.float32(0.5), 0, 1) * pale
        np.maximum(share[box], tube, out=share[box])
    return share
