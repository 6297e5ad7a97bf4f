"""Checkpoints that are whole or not there, say when they are damaged, and hold nothing that runs when it is loaded.

A file is torch's own archive followed by a sha256 of it, so that it stays verifiable when it is renamed or moved, and
`torch.load` still reads it. The generation before the newest `last.ckpt` is kept as `previous.ckpt`.
"""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytorch_lightning as pl
import torch
from packaging.version import Version
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import TEMPORARY_PREFIX, atomic_path, sweep_temporaries
from covidseg.system.readback import NUMBER, mismatch

FORMAT = 1  # of a checkpoint's content; another one is refused
FORMAT_KEY = "covidseg_format"
_LIGHTNING = "pytorch-lightning_version"
LAST, BEST, PREVIOUS = "last.ckpt", "best.ckpt", "previous.ckpt"
_MARK = b"covidseg-sha256:"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size


_TRAINING_STATE = {
    "global_step": int,
    "epoch": int,
    _LIGHTNING: re.compile(r"\d+\.\d+[0-9a-zA-Z.+-]*"),
    "loops": dict,
    "callbacks": {"SaveAndStop?": {"best?": NUMBER, "best_step?": int, "newest?": NUMBER, "newest_step?": int}},
    "optimizer_states": [dict],
    "lr_schedulers": [dict],
}


def checkpoint_name(scored: str) -> str:
    """The file of what `training.evaluate` names: `best` or `last`."""
    return BEST if scored == "best" else LAST


class Truncated(BadInput):
    """The file ends early: its writer's machine died, or a copy was cut short."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk: written beside the target, synced, renamed; weights with NaN or infinity are refused."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        if bad := [name for name, value in checkpoint["state_dict"].items() if not _is_finite(value)]:
            raise CovidSegError(path.name, f"not saved: {bad[0]} holds NaN or infinity", "lower the learning rate")
        checkpoint[FORMAT_KEY] = FORMAT
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as stream:
                hashing = _Hashing(stream)
                try:
                    torch.save(checkpoint, cast(BinaryIO, hashing))
                except RuntimeError as error:  # what torch makes of a full disk
                    raise hashing.fault or error from None
                stream.write(_MARK + hashing.sha256.digest())
            if path.name == LAST:
                _keep_previous(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU. Raises `Truncated`, or `BadInput` for an altered file."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(path.name, "is not there", "train first, or name another checkpoint") from None
    archive, trailer = memoryview(content)[:-_TRAILER], content[-_TRAILER:]
    if not trailer.startswith(_MARK):
        raise Truncated(path.name, "is truncated or not a checkpoint of this suite", "use an older checkpoint")
    if hashlib.sha256(archive).digest() != trailer[len(_MARK) :]:
        raise BadInput(path.name, "does not match its checksum: it was altered after it was written", "restore it")
    try:
        checkpoint = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's own, and whatever a made-up archive makes torch trip over
        raise BadInput(path.name, "holds something other than weights", "never trust this file") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(_is_weight(*entry) for entry in state.items()):
        raise BadInput(path.name, "holds something other than weights", "never trust this file")
    if (written := checkpoint.get(FORMAT_KEY, FORMAT)) != FORMAT:
        raise BadInput(path.name, f"has format {written!r}, this code reads {FORMAT}", "use the code that wrote it")
    if bad := [name for name, value in checkpoint["state_dict"].items() if not _is_finite(value)]:
        raise BadInput(path.name, f"{bad[0]} holds NaN or infinity", "use an older checkpoint")
    return checkpoint


def weights_alone(path: Path) -> Path:
    """A checkpoint with the weights of `path` and no training state: itself, or `<name>-weights.ckpt` beside it."""
    content = load_checkpoint(path)
    if not content.keys() & {"optimizer_states", "loops", "callbacks"}:
        return path
    kept = {key: content[key] for key in ("epoch", "global_step", _LIGHTNING, "state_dict") if key in content}
    alone = path.with_name(f"{path.stem}-weights.ckpt")
    AtomicCheckpointIO().save_checkpoint(kept, alone)
    return alone


def to_resume(folder: Path) -> tuple[Path, dict[str, Any], str] | None:
    """The newest whole checkpoint of a run, its content, and what had to be passed over ("" if nothing).

    A truncated `last.ckpt` gives way to `previous.ckpt`; an altered one is refused (`BadInput`). None: there is none.
    """
    sweep_temporaries(folder)
    passed_over = ""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return path, load_checkpoint(path), passed_over
        except Truncated as error:
            passed_over = str(error)
    if passed_over:
        raise BadInput(folder.name, passed_over, "no older one is left; resume=never in another row= starts over")
    return None


def require_training_state(path: Path, content: dict[str, Any]) -> str:
    """What there is to say about the Lightning that wrote a checkpoint ("": it was this one).

    Raises `BadInput` where the content is not what a training needs to go on, or a newer Lightning wrote it; what an
    older one wrote is migrated by Lightning.
    """
    if wrong := mismatch(content, _TRAINING_STATE):
        wrong = f"is none that training can go on from ({wrong})"
        raise BadInput(path.name, wrong, "restore it, or choose another row=")
    ours, theirs = (Version(text) for text in (pl.__version__, content[_LIGHTNING]))
    if theirs.release[:2] > ours.release[:2]:
        wrong = f"was written by Lightning {theirs}, and {ours} is installed"
        raise BadInput(path.name, wrong, f"pip install 'pytorch-lightning>={theirs}', or choose another row=")
    if theirs.release[:2] < ours.release[:2]:
        return f"{path.name} was written by Lightning {theirs}: migrated to {ours}"
    return ""


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _keep_previous(path: Path) -> None:
    """Give the file at `path` the second name `previous.ckpt`, without a moment in which neither name is there."""
    link = path.with_name(f"{TEMPORARY_PREFIX}{PREVIOUS}")  # a run has one writer
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except FileNotFoundError:
        return  # the first checkpoint
    except OSError:  # a file system without hard links
        os.replace(path, path.with_name(PREVIOUS))
        return
    try:
        os.replace(link, path.with_name(PREVIOUS))
    finally:
        link.unlink(missing_ok=True)


class _Hashing:
    """A binary stream that takes the sha256 of what passes; torch writes its archive front to back."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.sha256 = stream, hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        try:
            return self.stream.write(content)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def _is_finite(value: Any) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()) or bool(torch.isfinite(value).all())
