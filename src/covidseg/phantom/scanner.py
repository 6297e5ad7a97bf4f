"""From the patient to a scan: field of view, slices, blur of the reconstruction, noise that it has correlated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covidseg.phantom.anatomy import Subject
from covidseg.phantom.fields import Lattice, blur

SUBSLICE_MM = 3.0  # thicker slices are averages of thinner ones: partial volume along z
THINNEST_MM, THICKEST_MM = 0.6, 8.0
MARGIN_MM = 12.0  # above the lungs and below them


@dataclass(frozen=True)
class Protocol:
    """How a scanner takes and reconstructs its pictures."""

    slice_mm: float
    slices: int
    field_mm: float
    centre_z: float
    sharpness_mm: float  # standard deviation of the point spread in the slice
    noise_hu: float  # standard deviation in the middle of the body
    round_field: bool  # outside the reconstructed circle stands a padding value

    @classmethod
    def draw(
        cls,
        draw: np.random.Generator,
        subject: Subject,
        shape_zyx: Sequence[int],
        thin: bool,
        focus_z: float,
        sharp: bool,
    ) -> "Protocol":
        """A plausible protocol that needs at most `shape_zyx` voxels.

        `thin=False`: the whole lungs in exactly that many slices. Otherwise the slice thickness is drawn between 0.6
        and 8 mm: thick slices need fewer, and thin ones that do not reach cover a slab around `focus_z`.
        """
        low, high = -150.0 * subject.size - MARGIN_MM, subject.apex + MARGIN_MM
        length = high - low
        slice_mm = length / shape_zyx[0]
        if thin:
            slice_mm = float(np.exp(draw.uniform(np.log(THINNEST_MM), np.log(THICKEST_MM))))
        slices = min(shape_zyx[0], int(np.ceil(length / slice_mm)))
        slack = max(0.0, length - slices * slice_mm) / 2
        middle = (low + high) / 2
        field = 2 * (subject.cage[1] + 24 + subject.fat) + draw.uniform(15, 60)
        return cls(
            slice_mm=slice_mm,
            slices=slices,
            field_mm=field,
            centre_z=float(np.clip(focus_z, middle - slack, middle + slack)),
            sharpness_mm=draw.uniform(0.35, 0.6) if sharp else draw.uniform(0.6, 1.0),
            noise_hu=float(
                np.clip(draw.normal(15, 4), 7, 28) * (3.0 / max(slice_mm, 1.0)) ** 0.5 * (1.5 if sharp else 1)
            ),
            round_field=bool(draw.uniform() < 0.25),
        )

    def lattice(self, shape_zyx: Sequence[int]) -> tuple[Lattice, int]:
        """Where the patient is sampled, and how many of its slices make one of the scan."""
        parts = max(1, int(np.ceil(self.slice_mm / SUBSLICE_MM)))
        pixel = [self.field_mm / n for n in shape_zyx[1:]]
        step = max(pixel)  # square pixels: the picture is as wide as its longer side
        spacing = (self.slice_mm / parts, step, step)
        return Lattice((self.slices * parts, shape_zyx[1], shape_zyx[2]), spacing, (self.centre_z, 0.0, 0.0)), parts

    def scan(self, hu: np.ndarray, lattice: Lattice, parts: int, draw: np.random.Generator) -> np.ndarray:
        """int16 HU of the scan: blurred, averaged into slices, noisy; `hu` is overwritten."""
        spacing = lattice.spacing_zyx
        hu = blur(hu, (0.35 * self.slice_mm / parts, self.sharpness_mm, self.sharpness_mm), spacing)
        hu = hu.reshape(self.slices, parts, *hu.shape[1:]).mean(axis=1)
        thick = (self.slice_mm, *spacing[1:])
        noise = draw.standard_normal(hu.shape, np.float32)
        grain = max(self.sharpness_mm, 0.35 * spacing[1])
        noise = blur(noise, (0.3 * self.slice_mm, grain, grain), thick)
        noise -= blur(noise, (0, 4 * grain, 4 * grain), thick)  # filtered backprojection leaves no slow noise
        _, y, x = lattice.axes
        middle = np.exp(-((x / 130) ** 2 + (y / 90) ** 2))  # the middle of the body gets the fewest photons
        noise *= self.noise_hu / noise.std() * (0.55 + 0.75 * middle)
        hu = hu + noise
        if self.round_field:
            hu[:, (x**2 + y**2)[0] > (self.field_mm / 2) ** 2] = -1024
        return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
