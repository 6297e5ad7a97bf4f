"""Lesion-wise F1: which of the reference's lesions were found, and which of the predicted ones are there."""

import numpy as np
from scipy import ndimage

SHARE = 0.1  # of a lesion's voxels that the other mask has to hold
_TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner belong to one lesion


def lesion_f1(prediction: np.ndarray, reference: np.ndarray) -> float:
    """F1 over lesions of two boolean masks (z, y, x) of one shape, neither of them empty.

    A lesion is a part of a mask that is connected over faces, edges or corners. One of the reference is found if a
    tenth of its voxels are predicted, by however many predicted lesions: split by the prediction, it is found once. A
    predicted lesion is right if a tenth of its voxels lie in the reference, in however many of its lesions: one that
    merges several is right once, and finds each of those it covers. F1 is the harmonic mean of the share of lesions
    found and the share of predicted lesions that are right. So a mask of the whole lung is one wrong lesion.
    """
    found, right = _share_met(reference, prediction), _share_met(prediction, reference)
    return 2 * found * right / (found + right) if found + right else 0.0


def _share_met(mask: np.ndarray, other: np.ndarray) -> float:
    """Share of the lesions of `mask` of which `other` holds enough."""
    lesions, number = ndimage.label(mask, _TOUCHING)
    sizes = np.bincount(lesions.ravel(), minlength=number + 1)[1:]
    covered = np.bincount(lesions[other], minlength=number + 1)[1:]
    return float(np.mean(covered >= SHARE * sizes))
