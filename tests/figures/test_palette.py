"""Colours of methods stay apart in CIE Lab, for common eyes and without red, green or blue cones."""

from itertools import combinations

import numpy as np
import pytest

from covidseg.figures.palette import METHOD_COLOURS, REFERENCE_COLOUR, colours

APART = 19  # in CIE 1976; 2.3 is just noticeable side by side
EYES = {  # Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
    "common": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, eye):
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(EYES[eye]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    seen_xyz = np.array(to_xyz) @ seen / [0.95047, 1, 1.08883]
    fx, fy, fz = (part ** (1 / 3) if part > (6 / 29) ** 3 else part / (3 * (6 / 29) ** 2) + 4 / 29 for part in seen_xyz)
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def test_lab_of_known_colours():
    np.testing.assert_allclose(lab("#ff0000", "common"), [53.24, 80.09, 67.20], atol=0.05)
    np.testing.assert_allclose(lab("#808080", "protan"), [53.59, 0, 0], atol=0.05)


@pytest.mark.parametrize("eye", EYES)
def test_sixteen_colours_and_the_references_stay_apart(eye):
    seen = [lab(colour, eye) for colour in (*METHOD_COLOURS, REFERENCE_COLOUR)]
    assert len(METHOD_COLOURS) == 16
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) >= APART


def test_none_hides_in_the_greys_of_a_scan():
    assert min(np.hypot(*lab(colour, "common")[1:]) for colour in METHOD_COLOURS) > 25


def test_beyond_sixteen_they_come_again():
    assert list(colours(18)) == [*METHOD_COLOURS, *METHOD_COLOURS[:2]]
