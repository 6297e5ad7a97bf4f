"""First weights from another run: `init_from=runs/...`, for fine-tuning. What does not fit is said aloud."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from torch import Tensor, nn

from covidseg.config.plain import as_dict
from covidseg.data.prepare.splits import chooses
from covidseg.data.store import PreparedCase, PreparedDataset
from covidseg.evaluation.cases import seen_in_training
from covidseg.inference.segmenter import PREFIX
from covidseg.nets.network import SegmentationNetwork
from covidseg.runs.checkpoints import checkpoint_name, load_checkpoint
from covidseg.runs.folder import RunFolder
from covidseg.runs.training_data import training_data
from covidseg.system.errors import BadInput
from covidseg.system.files import sha256

_LEAST = 0.1  # share of the numbers wanted that a source has to have
PARTS, FROZEN = ("all", "encoder"), ("none", "encoder")


def check_initial(cfg: DictConfig) -> None:
    """Raise `BadInput` for values of `init_from`, `init_parts` and `freeze` that do not fit each other."""
    for key, choices in (("init_parts", PARTS), ("freeze", FROZEN)):
        if cfg[key] not in choices:
            raise BadInput(f"{key}={cfg[key]}", "there is no such choice", f"one of {', '.join(choices)}")
    if cfg.init_from is None and (cfg.init_parts, cfg.freeze) != ("all", "none"):
        option = f"init_parts={cfg.init_parts}" if cfg.init_parts != "all" else f"freeze={cfg.freeze}"
        raise BadInput(option, "means something with the weights of another run only", "add init_from=<run folder>")


@dataclass(frozen=True)
class Source:
    """The run whose weights a training begins with."""

    folder: RunFolder
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    digest: str  # sha256 of the checkpoint

    @classmethod
    def open(cls, path: str) -> "Source":
        """The weights that were scored. Raises `BadInput` for a folder that is no run, or holds no such checkpoint."""
        folder = RunFolder(path)
        what = f"init_from={folder}"
        if (config := folder.config) is None:
            raise BadInput(what, "holds no config.yaml, so it is not a run folder", "name its seed<k> folder")
        plain = as_dict(config, resolve=False)
        evaluate = plain.get("training", {}).get("evaluate", "last")
        if evaluate not in ("last", "best") or not {"data", "paths", "fold"} <= plain.keys():
            raise BadInput(what, "has a config.yaml that is not that of a run", "name another run")
        file = folder.checkpoints / checkpoint_name(evaluate)
        state = load_checkpoint(file)["state_dict"]
        weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        return cls(folder, plain, weights, sha256(file))

    def give(self, network: nn.Module, parts: str, frozen: str = "none") -> str:
        """Put what fits into the network, and say what did not.

        Raises `BadInput` where nothing fits, and where what is frozen does not fit whole: it would stay at random.
        """
        own = network.state_dict()
        wanted = {name for name in own if parts == "all" or name.startswith(encoder_of(network))}
        fitting = {name for name in wanted & self.weights.keys() if self.weights[name].shape == own[name].shape}
        if _numbers(own, fitting) < _LEAST * _numbers(own, wanted):  # a bias here and there fits by chance
            wrong = f"has no weights that fit {type(network).__name__} of this width"
            raise BadInput(f"init_from={self.folder}", wrong, "choose the model=, model.width= and blocks of that run")
        if frozen == "encoder" and (odd := {n for n in own if n.startswith(encoder_of(network))} - fitting):
            wrong = f"cannot be frozen: {self.folder} has no weights for {_modules(odd)}"
            raise BadInput("freeze=encoder", wrong, "freeze=none, or the model of that run")
        network.load_state_dict({**own, **{name: self.weights[name] for name in fitting}})
        anew = _modules(wanted - fitting)
        unused = _modules(self.weights.keys() - own.keys()) if parts == "all" else ""
        said = f"begins with {len(fitting)} of {len(own)} tensors of {self.folder}"
        said += f"; begun anew: {anew}" if anew else ""
        return said + (f"; left there: {unused}" if unused else "")

    def differences(self, cfg: DictConfig) -> list[str]:
        """In what these data look other to a network than those it comes from."""
        data = self.config["data"]
        pairs = {key: (data.get(key), as_dict(cfg.data)[key]) for key in ("spacing_zyx", "window")}
        return [f"data.{key} was {was} there and is {now} here" for key, (was, now) in pairs.items() if was != now]

    def refuse_leak(
        self, sets: Mapping[str, list[PreparedCase]], dataset: PreparedDataset, home: Path | str
    ) -> str | None:
        """Raise `BadInput` where it learned from cases of these sets; a word where that cannot be found out."""
        training = training_data(self.folder.path, self.config, home, dataset)
        if training is None:
            return f"whether {self.folder} was trained on any of these cases cannot be told: its data are not here"
        choosing = chooses(self.config["training"])
        found = seen_in_training(sets, dataset, training, self.config["fold"], choosing)
        if seen := [*found["train"], *found["validation"]]:
            shown = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
            wrong = f"learned from {len(seen)} of the cases that this run is scored on ({shown})"
            raise BadInput(f"init_from={self.folder}", wrong, "take a run of the same fold, or one of other data")
        return None


def freeze(network: nn.Module, part: str) -> None:
    """Take the `part` of the network ("encoder" or "none") out of the training: no gradients."""
    if part == "encoder":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(encoder_of(network)))


def hold_statistics(network: nn.Module) -> None:
    """Keep modules whose parameters are all frozen in evaluation mode, so that batch norm does not drift under them."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def encoder_of(network: nn.Module) -> tuple[str, ...]:
    """How the names of the encoder's weights begin. Raises `BadInput` for a network that does not say."""
    parts = cast(SegmentationNetwork, network).encoder_parts
    if not parts:
        wrong = f"is not known of {cast(SegmentationNetwork, network).name}"
        raise BadInput("the encoder", wrong, "init_parts=all, freeze=none")
    return parts


def _numbers(weights: Mapping[str, Tensor], names: set[str]) -> int:
    return sum(weights[name].numel() for name in names)


def _modules(names: set[str]) -> str:
    """The modules that hold these weights, in short."""
    modules = sorted({name.rpartition(".")[0] for name in names})
    return ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")
