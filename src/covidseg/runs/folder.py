"""Run folders: where a run lies, what is in it, and who may write there. No torch: a sweep's driver imports this.

runs/<name>/<row>/<task>/seed<k>[-fold<j>]/ holds config.yaml, manifest.json, status.json, checkpoints/, metrics.csv,
cases.csv and metrics.json. A run is named, not dated: the same command finds the same folder, goes on where it stands,
and does nothing once metrics.json, written last, is there with its scores.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, AnchorToken, TagToken, YAMLError

from covidseg.config.moved import with_present_names
from covidseg.config.paths import CONF
from covidseg.config.plain import as_dict, leaves, load_yaml
from covidseg.data.prepare.splits import ALL
from covidseg.runs.timing import PARTS
from covidseg.scans.gate.names import printable
from covidseg.system.errors import BadInput, EnvironmentFault
from covidseg.system.files import read_json, write_json, write_text
from covidseg.system.locks import is_locked, locked
from covidseg.system.readback import NUMBER, mismatch
from covidseg.system.scrub import without_secrets

# What a result depends on. Everything else (devices, logger, places, resume) may change between two starts of one run.
SIGNIFICANT = ("seed", "fold", "task", "model", "data", "augment", "loss", "optimizer", "training", "inference")
INSIGNIFICANT = {
    "data.root", "data.source.root", "data.prepared", "data.verify", "data.workers", "training.loader_threads",
    "training.prefetch", "training.log_every", "training.checkpoint_every", "training.channels_last",
    "training.compile", "model.checkpoint_activations", "inference.batch_size",
}  # fmt: skip
_WITH_SOURCE = ("init_parts", "freeze")  # nothing without `init_from`
WATCHING = ("lr_monitor",)  # callbacks that change nothing
UNSCORED = (
    "was trained, and nothing was scored: its data have no test set -> remove this folder, and cross-validate with "
    "fold=0, fold=1, ... or train on everything with fold=all"
)
NOT_SCORED = "trained, not scored"  # what `fold=all` asks for
_RUN_NAME = re.compile(r"seed(\d+)(?:-fold(\d+|all))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_CONFIG_BYTES = 1 << 20
_SECTIONS = {
    f"{section}?": dict
    for section in ("task", "model", "data", "training", "inference", "trainer", "paths", "callbacks")
}
_STATUS = {
    "state": str,
    "step?": int,
    "max_steps?": int,
    "patches_per_second?": NUMBER,
    "seconds?": dict.fromkeys(PARTS, NUMBER),
    "evaluated?": [int, int],  # cases that were scored, of so many
    "updated?": NUMBER,
    "pid?": int,
    "reason?": str,
}
_SUMMARY = {"n?": int, "dice?": {"mean?": NUMBER, "n?": int}}
_METRICS = {
    "sets?": {...: {...: _SUMMARY}},
    "train?": {"seconds?": NUMBER, "steps?": int},
    "validation?": {"dice": NUMBER, "step?": int},
    "parameters?": int,
    "multiply_adds?": int,
}
_MANIFEST = {
    "format?": int,
    "config_hash?": str,
    "data?": {"name?": _NAME, "hash?": _NAME},
    "cases?": {...: int},
    "left_out?": [str],
    "parameters?": int,
    "multiply_adds?": int,
    "attempts?": [
        {
            "started?": str,
            "device?": str,
            "processes?": int,
            "precision?": str,
            "effective_batch_size?": int,
            "nodes?": int,
            "accumulated?": int,
            "git?": {"commit?": str, "dirty?": bool},
            "versions?": {...: str},
        }
    ],
}
_COUNTS = {"devices": "processes", "num_nodes": "nodes", "accumulate_grad_batches": "accumulated"}
_RESOURCES = {"effective_batch_size": "effective batch", "precision": "precision"}
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # Lightning's short names
_OF_ONE_CONFIGURATION = ("manifest.json", "status.json", "metrics.csv", "tracking.json")
_LOCK = ".lock"
_INTERPOLATION = re.compile(r"(?<!\\)\$\{")


def run_dir(cfg: DictConfig) -> Path:
    """The folder of a configuration's run, relative as `paths.runs` is; `BadInput` for a name no folder can have."""
    row = cfg.row if cfg.row is not None else model_name(cfg.model)
    last = f"seed{cfg.seed}" + ("" if cfg.fold is None else f"-fold{cfg.fold}")
    for option, part in (("name", cfg.name), ("row", row), ("task", cfg.task.name)):
        if not _NAME.fullmatch(str(part)):
            raise BadInput(f"{option}={part}", "cannot name a folder", "use letters, digits, dot, dash and underscore")
    return Path(str(cfg.paths.runs)) / str(cfg.name) / str(row) / str(cfg.task.name) / last


def asked_resources(cfg: DictConfig) -> dict[str, Any]:
    """The effective batch and the precision that a configuration asks for by name; what `auto` leaves open is absent.

    Devices change a result only through these two.
    """
    trainer = cfg.get("trainer") or {}
    count, precision = device_count(trainer.get("devices")), str(trainer.get("precision", "auto"))
    asked: dict[str, Any] = {}
    if count is not None and "training" in cfg:
        asked["effective_batch_size"] = effective_batch(cfg, count * (trainer.get("num_nodes") or 1))
    if precision != "auto":
        asked["precision"] = _PRECISIONS.get(precision, precision)
    return asked


def effective_batch(cfg: DictConfig, processes: int) -> int:
    """Patches whose gradients make one step: of all processes, and of all batches that are accumulated."""
    return cfg.training.batch_size * processes * cfg.trainer.get("accumulate_grad_batches", 1)


def last_attempt(manifest: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The last start of a run, the one that finished it if it is; empty where none is recorded."""
    return ((manifest or {}).get("attempts") or [{}])[-1]


def device_count(devices: Any) -> int | None:
    """How many devices `trainer.devices` names; None where the machine decides."""
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if isinstance(devices, ListConfig | list):
        return len(devices)
    return devices if isinstance(devices, int) and devices > 0 else None


def run_identity(folder: Path) -> tuple[int, int | str | None] | None:
    """(seed, fold) of a folder that is named as a run's; None for any other."""
    if not (match := _RUN_NAME.fullmatch(folder.name)):
        return None
    fold = match[2]
    return int(match[1]), int(fold) if fold and fold != ALL else fold


def model_name(model: Mapping[str, Any]) -> str:
    """The network's config name and those of its blocks, less what is `none` both here and by the network's default."""
    network = _choice("model", model)
    parts = [network]
    defaults = load_yaml(CONF / "model" / f"{network}.yaml").get("defaults", []) if network else []
    for entry in defaults:
        if isinstance(entry, DictConfig):
            ((slot, default),) = ((str(name), default) for name, default in entry.items())
            choice = _choice(f"model/{slot}", model[str(slot)])
            parts += [choice] if (choice, default) != ("none", "none") else []
    return "-".join(parts)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers: resolved, except that secrets and environment variables stay out of it."""
    raw = as_dict(cfg, resolve=False)
    raw.pop("hydra", None)
    return as_dict(OmegaConf.create(without_secrets(raw)))


def config_hash(cfg: DictConfig | Mapping[str, Any]) -> str:
    """Equal for two configurations exactly when they ask for the same result."""
    return hashlib.sha256(json.dumps(_significant(cfg), sort_keys=True).encode()).hexdigest()[:16]


class RunFolder:
    """One run's folder; making the object touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"

    def __str__(self) -> str:
        """The last four parts of its path; of a shorter absolute one, the whole."""
        return Path(*self.path.parts[-4:]).as_posix()

    @property
    def has_results(self) -> bool:
        """Whether the run wrote metrics.json, its last file. Whether there is a score in it is another question."""
        return (self.path / "metrics.json").exists()

    @property
    def asks_for_no_score(self) -> bool:
        """Whether the run trains on every case, so that none is left to be scored on."""
        return self.path.name.endswith(f"-fold{ALL}")

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: there are results, with scores unless the run asked for none."""
        if not self.has_results or self.asks_for_no_score:
            return self.has_results
        return any(((self.metrics or {}).get("sets") or {}).values())

    @property
    def is_unscored(self) -> bool:
        """Whether it looks finished and is not: there are results without a score that was asked for."""
        return self.has_results and not self.is_finished

    @property
    def status(self) -> dict[str, Any] | None:
        """What the run last said about itself: state, step, max_steps, patches_per_second, updated, pid, reason."""
        status = self._told("status.json", _STATUS)
        return status and {key: printable(value) if isinstance(value, str) else value for key, value in status.items()}

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json; None where there is none, or something else."""
        return self._told("metrics.json", _METRICS)

    @property
    def validation_dice(self) -> float | None:
        """The validation score of the checkpoint that was evaluated; None where there was no validation."""
        return ((self.metrics or {}).get("validation") or {}).get("dice")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The content of manifest.json; None where there is none, or something else."""
        return self._told("manifest.json", _MANIFEST)

    def _told(self, name: str, shape: Any) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            told = read_json(self.path / name)
            return None if mismatch(told, shape) else told
        return None

    @property
    def config(self) -> DictConfig | None:
        """The content of config.yaml, None where there is none; `BadInput` where it is not what a run writes.

        It was written resolved, without anchors: an interpolation could only fetch what it should not, an alias only
        make a small file large.
        """
        if not self.config_path.exists():
            return None
        try:
            text = _text_of(self.config_path)
            if any(isinstance(token, AliasToken | AnchorToken | TagToken) for token in yaml.scan(text)):
                raise ValueError("it holds an anchor or a tag")
            config = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
            if _INTERPOLATION.search(OmegaConf.to_yaml(config, resolve=False)):
                raise ValueError("it holds an interpolation (${...})")
            content = OmegaConf.to_container(config, resolve=False)
            if wrong := mismatch(content, _SECTIONS):
                raise ValueError(wrong)
            return OmegaConf.create(with_present_names(content))
        except (YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
            wrong = f"cannot be read ({' '.join(str(error).split())[:120]})"
            raise BadInput(f"{self}/config.yaml", wrong, "restore it, or remove the folder") from error

    @property
    def config_hash(self) -> str | None:
        return None if (config := self.config) is None else config_hash(config)

    @property
    def holds_work(self) -> bool:
        """Whether something would be lost with the folder: a checkpoint, or results."""
        return self.has_results or any(self.checkpoints.glob("*.ckpt"))

    @property
    def began(self) -> Mapping[str, Any]:
        """The attempt whose effective batch and precision are the run's own; empty where no work is kept of one."""
        return last_attempt(self.manifest) if self.holds_work else {}

    def other_resources(self, asked: Mapping[str, Any]) -> BadInput | None:
        """What to say where the run that lies here was made with another effective batch or precision than `asked`."""
        began = self.began
        told = [key for key in _RESOURCES if key in asked.keys() & began.keys()]
        differ = [key for key in told if asked[key] != began[key]]
        if not differ:
            return None
        said = "; ".join(f"{_RESOURCES[key]} {began[key]} there, {asked[key]} here" for key in differ)
        keeps = ["trainer.precision=auto"] if "precision" in differ else []
        if "effective_batch_size" in differ:
            counts = {option: began.get(key, 1) for option, key in _COUNTS.items()}
            counts["devices"] //= counts["num_nodes"]
            keeps = [f"trainer.{option}={n}" for option, n in counts.items() if n > 1 or option != "num_nodes"] + keeps
        same = f"{' and '.join(keeps)} for the same run; " if keeps else ""
        return BadInput(str(self), f"holds a run of other resources ({said})", f"{same}name= for another one")

    def claim(self, cfg: DictConfig) -> None:
        """Write config.yaml, or raise `BadInput` with the differences where another configuration's run lies.

        A start that failed before its first checkpoint, as one with a wrong option does, keeps no name to itself.
        """
        if (held := self.config) is not None and (differences := _differences(held, cfg)):
            if self.holds_work:
                raise BadInput(
                    str(self), f"holds a run of another configuration ({differences})", "choose another name= or row="
                )
            for name in _OF_ONE_CONFIGURATION:
                (self.path / name).unlink(missing_ok=True)
        if clash := self.other_resources(asked_resources(cfg)):
            raise clash
        if self.is_finished:
            return  # the file says how the run was made, not how it was asked for again
        write_text(self.config_path, OmegaConf.to_yaml(OmegaConf.create(without_secrets(plain(cfg)))))

    def has_nothing_to_do(self, cfg: DictConfig) -> bool:
        """Whether the run of `cfg` is finished, which is said then. Raises `BadInput` as `claim` does.

        Nothing here needs torch: a sweep that is started again asks it of every row.
        """
        if not self.is_finished or cfg.resume == "never":
            return False
        self.claim(cfg)
        print(f"{self} is finished: nothing to do")
        return True

    def write_status(self, state: str, **values: Any) -> None:
        """Replace status.json; `values` that are not given keep what they were."""
        previous = {key: value for key, value in (self.status or {}).items() if key != "reason"}
        stamp = {"updated": round(time.time(), 1), "pid": os.getpid()}
        write_json(self.path / "status.json", {**previous, "state": state, **values, **stamp})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for the life of this block or process; `EnvironmentFault` if another process holds it."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / _LOCK))
            except BlockingIOError:
                holder = (self.status or {}).get("pid", "unknown")
                raise EnvironmentFault(
                    str(self), f"another process (pid {holder}) trains there", "wait for it, or end it"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether a living process holds the folder."""
        return is_locked(self.path / _LOCK)


def _text_of(path: Path) -> str:
    """A small text file, whole."""
    with open(path, "rb") as stream:
        content = stream.read(_MAX_CONFIG_BYTES + 1)
    if len(content) > _MAX_CONFIG_BYTES:
        raise ValueError(f"it has more than {_MAX_CONFIG_BYTES} bytes")
    return content.decode("utf-8")


def _significant(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    values = plain(cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg)))
    found = dict(leaves({key: values.get(key) for key in SIGNIFICANT}))
    if callbacks := {name: node for name, node in (values.get("callbacks") or {}).items() if name not in WATCHING}:
        found |= dict(leaves(callbacks, "callbacks"))
    if source := values.get("init_from"):  # by its last parts, as a run is named: where it lies may change
        found |= {"init_from": str(RunFolder(str(source))), **{key: values.get(key) for key in _WITH_SOURCE}}
    return {key: value for key, value in found.items() if key not in INSIGNIFICANT}


def _differences(held: DictConfig, wanted: DictConfig) -> str:
    """`training.max_steps 8 there, 16 here; ...`, the first few."""
    there, here = _significant(held), _significant(wanted)
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    shown = "; ".join(f"{key} is {there.get(key)} there, {here.get(key)} here" for key in keys[:4])
    return shown + (f"; and {len(keys) - 4} more" if len(keys) > 4 else "")


def _choice(group: str, node: Mapping[str, Any]) -> str:
    """The file of a config group that agrees with `node` in most values."""
    wanted = dict(leaves(as_dict(node, resolve=False) if isinstance(node, DictConfig) else node))
    agreement = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        offered = dict(leaves(as_dict(_with_base(file), resolve=False)))
        if offered.get("_target_") == wanted.get("_target_"):
            agreement[file.stem] = sum(1 if wanted.get(key) == value else -1 for key, value in offered.items())
    if not agreement:
        return str(wanted.get("_target_", "model")).rsplit(".", 1)[-1].lower()
    return max(agreement, key=lambda name: agreement[name])


def _with_base(file: Path) -> DictConfig:
    """A config file on top of those of its own group that its defaults list names."""
    own = load_yaml(file)
    bases = [name for name in own.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*[_with_base(file.with_name(f"{name}.yaml")) for name in bases], own))
