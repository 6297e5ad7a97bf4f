"""One run of the suite as one Weights & Biases run: online or offline, continued when resumed, failed when it fails.

wandb is told to keep to what it is given and to the load of the devices: no console capture, no code, no git remote, no
command line, no description of the machine, and folders relative to the working directory (which must stay the same
while wandb's service runs, as it does where each run has its own process). Host names, user names and paths therefore
never enter its files.
"""

import contextlib
import functools
import importlib
import json
import netrc
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from covidseg.tracking.guard import Guarded, guarded
from covidseg.tracking.service import ExitWatch, NoAnswer, end_service, kill_service, within

_BEST = {  # in a run's summary
    "val/dice": "max",
    "val/lesion/dice": "max",
    "val/lung/dice": "max",
    "train/loss": "min",
    "val/loss": "min",
}
_TAG_LENGTH = 64  # the server refuses longer ones
_FIRST_SHARE = 0.75  # of `timeout_s`: for the server; the rest is for ending the service
_EXIT_WATCH = ExitWatch()


def tracked(method: Callable) -> Callable:
    """Wrap a method that takes the started W&B run first: rank zero only, in at most `timeout_s`, never raising."""

    @rank_zero_only
    @functools.wraps(method)
    def call(self: "WandbTracker", *args: Any, **kwargs: Any) -> None:
        run = self.start()
        if run is None:
            return
        try:
            within(self.timeout_s, lambda: method(self, run, *args, **kwargs))
        except Exception as error:
            self.give_up(error)

    return call


class WandbTracker(Guarded, Logger):
    """Lightning logger over one W&B run that starts on first use, lives in `<folder>/wandb` and never raises.

    `options` is the `logger` config group; `identity` is what the run is called; `run_id` stays the same over resumes.
    """

    what = "Weights & Biases"

    def __init__(
        self,
        options: Mapping[str, Any],
        folder: Path | str,
        *,
        run_id: str,
        identity: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ):
        super().__init__()
        self._options, self._folder = options, Path(folder)
        self._run_id, self._identity = run_id, identity
        self._tags, self._config = [tag[:_TAG_LENGTH] for tag in dict.fromkeys(tags)], dict(config)
        self._run = None
        self.online = False
        self.address: str | None = None  # of the run on the server
        self.timeout_s = float(options["timeout_s"])

    @property
    def name(self) -> str:
        return self._options["project"]

    @property
    def version(self) -> str:
        return self._run_id

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    def row(self) -> str:
        """Of the table, as the run's identity names it: <row>/<task>/seed<k>."""
        return self._identity.partition("/")[0]

    @property
    def experiment(self) -> Any:
        """The `wandb.Run`, started if need be; None on other ranks and after tracking has stopped."""
        return self.start()

    @rank_zero_only
    @guarded
    def start(self) -> Any:
        """Start or continue the W&B run; a server that does not answer in `timeout_s` turns it into an offline one."""
        if self._run is None:
            mode = chosen_mode(self._options["mode"])
            if mode == "online":
                self._start_online()
            if self._run is None and mode != "disabled":
                self._run = self._begin("offline", self.timeout_s)
            if self._run is None:
                self.alive = False
        return self._run

    def give_up(self, error: BaseException) -> None:
        """Also kill a service that does not answer: nothing may wait for it again."""
        super().give_up(error)
        if isinstance(error, NoAnswer):
            kill_service()

    @tracked
    def log_metrics(self, run: Any, metrics: Mapping[str, float], step: int | None = None) -> None:
        run.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the scrubbed configuration goes in when the run starts."""

    @tracked
    def update_config(self, run: Any, values: Mapping[str, Any]) -> None:
        """Add facts that were not known at the start (hardware, parameters); `values` must be scrubbed."""
        run.config.update(dict(values), allow_val_change=True)

    @tracked
    def log_images(self, run: Any, images: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Pictures by key, at the step being logged.

        A picture has `pixels` (y, x) uint8, a `caption`, and `masks` {name: ((y, x) uint8 label map, {value: label})}.
        """
        import wandb

        drawn = {key: [_image(wandb, picture) for picture in pictures] for key, pictures in images.items()}
        run.log(drawn, commit=False)  # the metrics of the same step are still to come

    @tracked
    def log_figures(self, run: Any, images: Mapping[str, Path]) -> None:
        """PNG files by key."""
        import wandb

        run.log({key: wandb.Image(os.path.relpath(path)) for key, path in images.items()}, commit=False)

    @tracked
    def log_table(self, run: Any, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """`rows` as a W&B table; the columns are the first row's keys."""
        if not rows:
            return
        import wandb

        columns: list[str | int] = list(rows[0])
        data = [[row.get(str(column)) for column in columns] for row in rows]
        run.log({key: wandb.Table(columns=columns, data=data)}, commit=False)

    @tracked
    def summarise(self, run: Any, values: Mapping[str, Any]) -> None:
        """Set the run's summary (the columns of W&B's run table)."""
        run.summary.update(dict(values))

    @tracked
    def log_artifact(
        self, run: Any, path: Path | str, name: str, metadata: Mapping[str, Any], aliases: Sequence[str] = ()
    ) -> None:
        """Upload (or, offline, register) a file under a name of its own as a model artifact named after the run."""
        import wandb

        artifact = wandb.Artifact(_artifact_name(self._identity), type="model", metadata=dict(metadata))
        artifact.add_file(os.path.relpath(path), name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", *map(_artifact_name, aliases)])

    @tracked
    def use_data(self, run: Any, name: str, facts: Mapping[str, Any]) -> None:
        """Say which data set the run learns from: an artifact of type "dataset" that holds `facts` and no case.

        wandb refuses to note offline what a run uses; there the artifact is logged by the run.
        """
        import wandb

        artifact = wandb.Artifact(_artifact_name(name), type="dataset", metadata=dict(facts))
        with artifact.new_file("dataset.json", encoding="utf-8") as stream:
            json.dump(facts, stream, indent=2, sort_keys=True)
        (run.use_artifact if self.online else run.log_artifact)(artifact)

    @rank_zero_only
    def close(self, exit_code: int, preempted: bool = False) -> None:
        """Finish the W&B run within `timeout_s`, and print the line that uploads what is still only here."""
        run = self.start() or self._run  # a run that fails before it logs anything is still to be seen as failed
        if run is None:
            return
        sent = self.online and self.alive

        def finish() -> None:
            if preempted:
                run.mark_preempting()
            run.finish(exit_code=exit_code)

        try:
            within(_FIRST_SHARE * self.timeout_s, finish)
        except Exception as error:
            sent = False
            self.give_up(error)
            end_service((1 - _FIRST_SHARE) * self.timeout_s)
        self._run, self.alive = None, False
        if sent and self.address:
            print(f"Weights & Biases: {self.address}", flush=True)
        elif not sent:
            print(sync_command(self._folder / "wandb", self.online), flush=True)

    def _start_online(self) -> None:
        """Leaves no run where the server does not take one in its share of the time."""
        try:
            self._run, self.online = self._begin("online", _FIRST_SHARE * self.timeout_s), True
            self.address = getattr(self._run, "url", None)
        except Exception as error:
            rank_zero_warn(f"{self.what}: the server cannot be used ({type(error).__name__}); tracking offline")
            kill_service()  # it holds nothing yet that is worth the wait
            end_service((1 - _FIRST_SHARE) * self.timeout_s)

    def _begin(self, mode: str, seconds: float) -> Any:
        """`_init` in at most `seconds`, and an exit that does not wait for the service of this run."""
        import wandb  # noqa: F401  a slow disk is not the service's delay

        run = within(seconds, lambda: _with_best_values(self._init(mode)))
        _EXIT_WATCH.arm(self.timeout_s)
        return run

    def _init(self, mode: str) -> Any:
        import wandb

        folder = Path(os.path.relpath(self._folder))
        folder.mkdir(parents=True, exist_ok=True)
        _use_writable_places()
        _disable_analytics()
        return wandb.init(
            project=self._options["project"],
            entity=self._options["entity"],
            group=self._options["group"],
            id=self._run_id,
            name=self._identity,
            job_type=self._options["job_type"],
            tags=self._tags,
            config=self._config,
            dir=str(folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(mode=cast(Any, mode), **_settings(self._options["timeout_s"])),
        )


def _artifact_name(text: str) -> str:
    """What W&B takes for a name or an alias."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:120]


def chosen_mode(mode: str) -> str:
    """online, offline or disabled: WANDB_MODE wins, and without a key `auto` and `online` mean offline."""
    if asked := os.environ.get("WANDB_MODE"):
        mode = asked if asked in ("offline", "disabled") else mode
    if mode not in ("auto", "online"):
        return mode
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether credentials for the W&B server are at hand: in the environment, or in netrc under the server's name."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for candidate in candidates:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.path.expanduser(candidate)).authenticators(host or ""):
                return True
    return False


def sync_command(folder: Path | str, online: bool = False) -> str:
    """The shell line that uploads everything tracked below a `wandb` folder, resumed parts in their order.

    `online`: also what was begun online and did not get through.
    """
    return f"wandb sync {'--include-online ' if online else ''}{shlex.quote(os.path.relpath(folder))}"


def _settings(timeout_s: float) -> dict[str, Any]:
    return {
        "init_timeout": timeout_s,
        "finish_timeout": timeout_s,
        "finish_timeout_raises": True,
        "login_timeout": timeout_s,
        "console": "off",
        "silent": True,
        "save_code": False,
        "disable_git": True,
        "disable_job_creation": True,
        "program": "train.py",
        "host": "",
        "symlink": False,
        "x_disable_meta": True,
        "x_save_requirements": False,
    }


def _use_writable_places() -> None:
    """Give wandb a place for its staging that is not in the home folder, whose path its files would hold.

    For its caches, too, when the home folder cannot be written, as on many clusters.
    """
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(tempfile.gettempdir()) / "wandb-staging"))
    if not os.access(Path.home(), os.W_OK):
        for place in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(place, str(Path(tempfile.gettempdir()) / f"wandb-{os.getuid()}"))


def _disable_analytics() -> None:
    """wandb's own: it would send tracebacks, and its exit handler waits for a server without a bound."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    with contextlib.suppress(ImportError, AttributeError):  # of wandb 0.31 only
        importlib.import_module("wandb.analytics.opentelemetry.opentelemetry_proxy").disable()


def _with_best_values(run: Any) -> Any:
    """Have the run's summary hold the best value of a curve, not the last one."""
    for name, best in _BEST.items():
        run.define_metric(name, summary=best)
    return run


def _image(wandb: Any, picture: Mapping[str, Any]) -> Any:
    masks = {name: {"mask_data": values, "class_labels": labels} for name, (values, labels) in picture["masks"].items()}
    return wandb.Image(picture["pixels"], masks=masks, caption=picture["caption"])
