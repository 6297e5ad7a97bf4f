"""What Lightning's logging does not carry: pictures of validation cases, and curves as new as the checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl

from covidseg.tracking.curves import CurvesCSV
from covidseg.tracking.guard import Guarded, guarded
from covidseg.tracking.wandb_run import WandbTracker

SLICES = 16  # of a case, under W&B's slider
_WINDOW_HU = (-1250.0, 250.0)  # the window that the networks see by default, for display


class SaveCurves(pl.Callback):
    """Brings metrics.csv up to date before each checkpoint, so that a run killed later resumes with its whole curve."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CurvesCSV):
                logger.save_now()


class ValidationOverlays(Guarded, pl.Callback):
    """Draws the first `count` cases of each validation with reference and prediction, in W&B.

    A validation step takes part by returning a mapping with `case` (id), `image` (int16 HU), `reference` and
    `prediction` (uint8 label maps), all three (z, y, x). `classes` names the labels.
    """

    what = "validation overlays"

    def __init__(self, count: int, classes: Mapping[int, str]):
        self._count, self._classes = count, dict(classes)
        self._pictures: list[dict[str, Any]] = []

    def on_validation_start(self, trainer, pl_module) -> None:
        self._pictures = []

    @guarded
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        wanted = trainer.is_global_zero and not trainer.sanity_checking and dataloader_idx == 0
        if wanted and len(self._pictures) < self._count and isinstance(outputs, Mapping) and "prediction" in outputs:
            self._pictures.append(picture(outputs, self._classes))

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        for logger in trainer.loggers:
            if self._pictures and isinstance(logger, WandbTracker):
                logger.log_images({"val/overlay": self._pictures})


def picture(outputs: Mapping[str, Any], classes: Mapping[int, str]) -> dict[str, Any]:
    """The slice of largest reference area (of largest predicted area without a reference), as `log_images` takes it."""
    image, reference, prediction = (np.asarray(outputs[key]) for key in ("image", "reference", "prediction"))
    shown = reference if reference.any() else prediction
    z = int(np.count_nonzero(shown, axis=(1, 2)).argmax())
    return _slice(outputs["case"], image, {"reference": reference, "prediction": prediction}, z, classes)


def case_pictures(
    case: str,
    image: np.ndarray,
    reference: np.ndarray,
    prediction: Mapping[str, np.ndarray],
    labels: Mapping[str, int],
    count: int = SLICES,
) -> list[dict[str, Any]]:
    """Slices of a case from foot to head, as `log_images` takes them: W&B shows them under a slider.

    `image` is int16 HU, `reference` a label map, both (z, y, x); `prediction`: structure -> bool mask; `labels`:
    structure -> its label, where a later one lies over an earlier one. The slices are spread over what is marked.
    """
    predicted = np.zeros(reference.shape, np.uint8)
    for name, label in labels.items():
        if name in prediction:
            predicted[prediction[name]] = label
    marked = np.flatnonzero(((reference > 0) | (predicted > 0)).any(axis=(1, 2)))
    first, last = (int(marked[0]), int(marked[-1])) if len(marked) else (0, len(reference) - 1)
    chosen = sorted({round(z) for z in np.linspace(first, last, count)})
    masks, classes = {"reference": np.asarray(reference), "prediction": predicted}, {v: k for k, v in labels.items()}
    return [_slice(case, image, masks, z, classes) for z in chosen]


def _slice(
    case: str, image: np.ndarray, masks: Mapping[str, np.ndarray], z: int, classes: Mapping[int, str]
) -> dict[str, Any]:
    low, high = _WINDOW_HU
    pixels = np.clip((image[z].astype(np.float32) - low) / (high - low), 0, 1) * 255
    return {
        "pixels": pixels.astype(np.uint8),
        "caption": f"{case}, slice {z}",
        "masks": {name: (values[z].astype(np.uint8), dict(classes)) for name, values in masks.items()},
    }
