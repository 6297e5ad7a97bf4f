"""One phantom: a patient, what ails them, a scan of it, and the labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg.phantom import lesions as ill
from covidseg.phantom.anatomy import Distances, Subject, Texture, body
from covidseg.phantom.lungs import Interior, fill, hilum, plumb
from covidseg.phantom.scanner import Protocol

GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over [0, 1): few patients are mild and severe ones already


@dataclass(frozen=True)
class Phantom:
    """A scan (z, y, x), growing towards Superior, Posterior, Left, and its truth."""

    hu: np.ndarray  # int16
    labels: np.ndarray  # uint8: 0 background, 1 lung, 2 lesion
    spacing_zyx: tuple[float, float, float]


def make_phantom(
    seed: int,
    shape_zyx: Sequence[int],
    *,
    patient: int = 0,
    scan: int = 0,
    lesions: bool = True,
    thin: bool = False,
    other_site: bool = False,
) -> Phantom:
    """Compute the phantom of (seed, patient, scan): same numbers, same voxels.

    The anatomy depends on the patient, lesions and noise on the scan. `thin` draws the slice thickness (0.6 to 8 mm)
    instead of spreading the lungs over all slices; `other_site` is a scanner with a sharp kernel, more noise and
    contrast medium.
    """
    anatomy, illness, machine = (
        np.random.default_rng(key) for key in ((seed, patient), (seed, patient, scan, 1), (seed, patient, scan, 2))
    )
    subject = Subject.draw(anatomy, contrast=other_site or bool(anatomy.uniform() < 0.2))
    interior = Interior.draw(subject, anatomy, voxel_mm=2 * subject.cage[1] / max(shape_zyx[1:]))
    severity = (np.random.default_rng((seed, scan, 3)).uniform() + patient * GOLDEN) % 1
    foci = ill.draw_lesions(subject, interior, severity, illness) if lesions else []
    focus = foci[0].centre_zyx[0] if foci else illness.uniform(-100, 80)
    protocol = Protocol.draw(machine, subject, shape_zyx, thin, focus, sharp=other_site)
    lattice, parts = protocol.lattice(shape_zyx)
    texture = Texture.draw(anatomy, subject, lattice)
    hu, share, wall, *axes = (np.empty(lattice.shape_zyx, np.float32) for _ in range(6))
    for slab in lattice.slabs():
        straight = lattice.part(slab)
        bent = subject.bend(straight)
        distances = Distances.of(subject, bent)
        hu[slab] = body(subject, lattice, straight, bent, distances, texture.part(slab))
        share[slab] = fill(hu[slab], subject, lattice, bent, distances, texture.part(slab))
        wall[slab] = distances.wall
        for whole, part in zip(axes, bent, strict=True):
            whole[slab] = part
    ill.imitate(hu, subject, lattice, axes, share, wall, illness)
    mask = ill.infiltrate(hu, foci, lattice, share, wall, illness)
    plumb(hu, subject, interior, lattice, share)

    lung = (share > 0.5) & ~hilum(interior, lattice)
    lung, lesion = (_slices(part, parts) for part in (lung, mask & lung))
    spacing = (protocol.slice_mm, *lattice.spacing_zyx[1:])
    return Phantom(protocol.scan(hu, lattice, parts, machine), lung.astype(np.uint8) + (lesion & lung), spacing)


def _slices(mask: np.ndarray, parts: int) -> np.ndarray:
    """Boolean mask of slices that consist of `parts` thinner ones each: what fills at least half of them."""
    return mask.reshape(-1, parts, *mask.shape[1:]).mean(axis=1, dtype=np.float32) >= 0.5
