"""A trained run, or several averaged, ready for scans: `covidseg.load("runs/...").predict("scan.nii.gz")`.

Everything a network needs is read from its run folder: what it is, how its input is made, which weights were scored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from covidseg.config.build import instantiate
from covidseg.config.plain import as_dict
from covidseg.data.prepare.grid import Grid
from covidseg.evaluation.structures import Task
from covidseg.inference.lung_box import Doubt, lung_box
from covidseg.inference.postprocessing import Postprocessing, chosen_for
from covidseg.inference.window import Progress, WindowInferer, case_scores, precision_on
from covidseg.nets.cost import meta_network
from covidseg.runs.checkpoints import checkpoint_name, load_checkpoint
from covidseg.runs.folder import RunFolder
from covidseg.system.errors import BadInput
from covidseg.system.files import sha256
from covidseg.system.readback import NUMBER, mismatch

if TYPE_CHECKING:
    import SimpleITK

    from covidseg.data.store import PreparedCase
    from covidseg.scans.read import Scan

PREFIX = "network."  # of the weights in a checkpoint of the LightningModule
MIN_SPACING_MM = 0.05  # finer is no CT, and one scan would fill the memory
MAX_WINDOW = 1 << 30  # voxels
BOXES = ("body", "lungs")
_NEEDED = {
    "task": {
        "name": str,
        "out_channels": int,
        "label_to_target": [int],
        "structures": {...: {"channels": [int], "labels": [int], "tolerance_mm": NUMBER}},
    },
    "model": {"_target_": str},
    "data": {"spacing_zyx": [NUMBER, NUMBER, NUMBER], "window": [NUMBER, NUMBER]},
    "inference": {"roi_zyx?": [int, int, int]},
    "training": {"evaluate": {"last", "best"}},
}


@dataclass(frozen=True)
class Segmenter:
    """A network with its weights, on its device, and what was fixed when it was trained.

    With `others`, further runs of the same task at the same voxel size, its probabilities are the mean of all of them.
    """

    network: nn.Module
    task: Task
    config: Mapping[str, Any]  # the run's config.yaml, as plain containers
    spacing_zyx: tuple[float, float, float]  # mm, of the images it was trained on
    window: tuple[float, float]  # HU that were scaled to [0, 1]
    inferer: WindowInferer
    name: str  # of the run: <table>/<row>/<task>/seed<k>
    checkpoint_sha256: str
    box: str = "body"  # what of a scan the network sees: "body", as in training, or "lungs"
    others: "tuple[Segmenter, ...]" = ()
    postprocessing: Postprocessing | None = None  # of the one structure of the task; None: the likeliest class

    @property
    def settings(self) -> dict[str, Any]:
        """How the masks are made of the weights, for a manifest."""
        chosen = {"postprocessing": asdict(self.postprocessing)} if self.postprocessing else {}
        return {**self.inferer.settings, **chosen}

    @property
    def members(self) -> "tuple[Segmenter, ...]":
        """This run and those it is averaged with."""
        return (self, *self.others)

    @property
    def identity(self) -> dict[str, Any]:
        """Which weights these are, for a manifest."""
        own = {"run": self.name, "task": self.task.name, "checkpoint_sha256": self.checkpoint_sha256}
        return {**own, "averaged_with": [one.identity for one in self.others]} if self.others else own

    def segment(self, scan: "Scan", progress: Progress | None = None) -> np.ndarray:
        """Class map of a scan that `read_scan` gave, uint8 (z, y, x) on its own grid.

        `progress` gets (windows done, windows in all).
        """
        return self.segment_on(self.grid_of(scan)[0], scan, progress)

    def segment_on(
        self, grid: Grid, scan: "Scan", progress: Progress | None = None, watch: Callable[[Tensor], None] | None = None
    ) -> np.ndarray:
        """The same, on a grid that `grid_of` gave; outside of its box all is background.

        `watch` gets the logits on `grid` (`scores`).
        """
        return self._classes(grid, self.scores(grid.image(scan.voxels), progress), watch)

    def probabilities(self, grid: Grid, scores: Tensor) -> dict[str, np.ndarray]:
        """{structure: float32 (z, y, x) on the scan's own grid} of the logits that `scores` gave for `grid`."""
        parts = self.task.structures.items()
        return {name: grid.probabilities_to_native(scores, part.channels) for name, part in parts}

    def scores(self, image: np.ndarray, progress: Progress | None = None) -> Tensor:
        """Logits (C, D, H, W) of an int16 image (z, y, x) in HU at `spacing_zyx`, C at least 2.

        Of several runs the logarithm of the sum of their probabilities: its softmax is their mean.
        """
        found: Tensor | None = None
        for number, one in enumerate(self.members):
            one.inferer.progress = _part_of(progress, number, len(self.members))
            logits = case_scores(one.network, image, self.task, one.window, one.inferer)
            if not self.others:
                return logits
            logits = logits.log_softmax(dim=0)
            found = logits if found is None else torch.logaddexp(found, logits)
        return cast(Tensor, found)

    def grid_of(self, scan: "Scan") -> tuple[Grid, str]:
        """The grid on which a scan is segmented, and what has to be said of it: that its lungs' box is not used."""
        place, canonical = scan.geometry, scan.geometry.canonical()
        if self.box == "body":
            return Grid.plan(scan.voxels, place, self.spacing_zyx), ""
        found = lung_box(place.to_canonical(scan.voxels), canonical.spacing_zyx)
        if isinstance(found, Doubt):
            said = f"the whole body is segmented, not the lungs' box: {found.reason}"
            return Grid.plan(scan.voxels, place, self.spacing_zyx), said
        return Grid.plan(scan.voxels, place, self.spacing_zyx, found), ""

    def segment_prepared(self, case: "PreparedCase", watch: Callable[[Tensor], None] | None = None) -> np.ndarray:
        """Class map of a prepared case on its scan's own grid. The case must have been prepared at `spacing_zyx`.

        `watch` gets the logits on the case's grid (`scores`).
        """
        return self._classes(case.grid, self.scores(case.image), watch)

    def _classes(self, grid: Grid, scores: Tensor, watch: Callable[[Tensor], None] | None) -> np.ndarray:
        if watch:
            watch(scores)
        if self.postprocessing is None:
            return grid.scores_to_native(scores)
        (part,) = self.task.structures.values()
        probability = grid.probabilities_to_native(scores, part.channels)
        mask = self.postprocessing.mask(probability, grid.native.spacing_zyx)
        return mask.astype(np.uint8) * np.uint8(part.channels[0])

    def predict(self, path: Path | str, **options: Any) -> "SimpleITK.Image":
        """Label image on the grid of the scan at `path`, any format that `read_scan` takes; `options` go to it.

        Values: 1 is the task's structure; with the joint task 1 is lesion-free lung and 2 lesion.
        """
        from covidseg.scans.read import read_scan
        from covidseg.scans.write import to_sitk

        scan = read_scan(path, **options)
        return to_sitk(self.segment(scan), scan.geometry)


def _part_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    """`progress` as the `number`-th of `count` networks may call it."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)


def load(
    run: Path | str | Sequence[Path | str],
    checkpoint: str = "auto",
    device: str = "auto",
    box: str = "body",
    postprocess: bool = False,
    **inference: Any,
) -> Segmenter:
    """The network of a run folder; of several folders (seeds, folds, networks of one task) the mean of all.

    `checkpoint`: "last", "best" (highest validation Dice), or "auto": the one whose scores stand in the run's table
    (`training.evaluate`). `device`: "auto" takes the GPU if there is one. `box`: "body" as in training, or "lungs",
    which is faster, wherever two lungs are found beyond doubt. `postprocess`: by what was chosen on the run's
    validation cases (`choose_postprocessing` of evaluate). `inference`: what is to differ from the run's own
    sliding window (`roi_zyx`, `overlap`, `batch_size`, `flips`), and `precision`: "float32", "bfloat16", or "auto"
    for bfloat16 on GPUs that compute in it.

    Raises `BadInput` for a folder that is no run, for runs that cannot be averaged, for a checkpoint that is
    missing, damaged, not the configuration's or not finite, and for a configuration that names anything but this
    suite's own classes. Nothing from the folder is executed.
    """
    if not isinstance(run, Path | str):
        return averaged([load(one, checkpoint, device, box, postprocess, **inference) for one in run])
    folder = RunFolder(run)
    what = f"run={folder}"
    config = _plain_config(folder)
    if wrong := mismatch(config, _NEEDED):
        raise BadInput(what, f"config.yaml is not that of a run ({wrong})", "train it again")
    if box not in BOXES:
        raise BadInput(f"inference.box={box}", "there is no such choice", f"one of {', '.join(BOXES)}")
    task = Task.from_config(config["task"])
    spacing, window = tuple(config["data"]["spacing_zyx"]), tuple(config["data"]["window"])
    if min(spacing) < MIN_SPACING_MM or window[0] >= window[1]:
        raise BadInput(what, f"was not trained at {spacing} mm, in a window of {window} HU", "restore its config.yaml")
    options = {**config["inference"], **inference}
    roi = options.get("roi_zyx")
    if roi is not None and not 0 < math.prod(max(n, 0) for n in roi) <= MAX_WINDOW:
        raise BadInput(what, f"its window of {roi} voxels is none that a machine can hold", "give inference.roi_zyx")
    network, digest = _restored(config["model"], folder, config["training"]["evaluate"], checkpoint)

    where = _device(device)
    options["precision"] = precision_on(where, options.get("precision", "auto"))  # a manifest names the resolved one
    try:
        inferer = WindowInferer(**options)
    except (TypeError, ValueError) as error:
        raise BadInput("inference", str(error)) from error
    network = network.to(where).eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    chosen = chosen_for(run, str(folder), digest, inferer.settings) if postprocess else None
    return Segmenter(network, task, config, spacing, window, inferer, str(folder), digest, box, postprocessing=chosen)


def by_structures(segmenters: Sequence[Segmenter]) -> list[Segmenter]:
    """One for each set of structures, averaged where several runs segment the same. Raises `BadInput`."""
    groups: dict[tuple[str, ...], list[Segmenter]] = {}
    for one in segmenters:
        groups.setdefault(tuple(one.task.structures), []).append(one)
    return [averaged(group) for group in groups.values()]


def averaged(members: Sequence[Segmenter]) -> Segmenter:
    """The mean of the runs. Raises `BadInput` where they do not segment the same thing on the same grid."""
    if not members:
        raise BadInput("run", "there is none", "give a run folder")
    first, *others = members
    if others and first.postprocessing:
        wrong = "was chosen for single runs, and these are averaged"
        raise BadInput("inference.postprocess", wrong, "leave it out, or give one run")
    known: dict[str, str] = {}
    for one in members:
        if twin := known.get(one.checkpoint_sha256):
            raise BadInput(f"run={one.name}", f"has the weights of {twin}, which is given too", "give each run once")
        known[one.checkpoint_sha256] = one.name
        if one.task != first.task:
            wrong = f"is of task {one.task.name}, {first.name} of {first.task.name}: they cannot be averaged"
            raise BadInput(f"run={one.name}", wrong, "give runs of one task")
        if one.spacing_zyx != first.spacing_zyx:
            wrong = f"was trained at {one.spacing_zyx} mm, {first.name} at {first.spacing_zyx} mm"
            raise BadInput(f"run={one.name}", wrong, "give runs of one data.spacing_zyx")
    return replace(first, others=tuple(others))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(
            f"device={name}", "cannot be used on this machine", "auto, cpu, cuda or cuda:<number>"
        ) from error


def _plain_config(folder: RunFolder) -> dict[str, Any]:
    """The run's configuration, which is saved resolved."""
    if (config := folder.config) is None:
        raise BadInput(f"run={folder}", "holds no config.yaml, so it is not a run folder", "name its seed<k> folder")
    return as_dict(config, resolve=False)


def _restored(model: Mapping[str, Any], folder: RunFolder, scored: str, checkpoint: str) -> tuple[nn.Module, str]:
    """The network with the weights of a checkpoint, and the sha256 of that file.

    The network is first made without memory: one that does not fit the weights, as of a width of a million, never is.
    """
    wanted = scored if checkpoint == "auto" else checkpoint
    if wanted not in ("last", "best"):
        raise BadInput(f"checkpoint={wanted}", "there is no such choice", "auto, last or best")
    path = folder.checkpoints / checkpoint_name(wanted)
    outline = meta_network(model)
    state = load_checkpoint(path)["state_dict"]
    weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    expected = outline.state_dict()
    shapes, found = ({name: one.shape for name, one in part.items()} for part in (expected, weights))
    if odd := [name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)]:
        wrong = f"does not fit the network of config.yaml: {', '.join(sorted(odd)[:3])}"
        raise BadInput(path.name, wrong, "checkpoint and config.yaml must come from one run")
    network = instantiate(model, "model")
    network.load_state_dict(weights)
    return network, sha256(path)
