"""What every command shares: a Hydra application whose errors are one line and whose exit status says who can help.

Exit status: 0 done, 1 a bug (with its traceback), 2 bad input or a wrong option, 3 the environment (disk, permission,
memory), 130 and 143 interrupted. `debug=true` shows the traceback of every error.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from covidseg.cli.help import own_help
from covidseg.config.choices import did_you_mean
from covidseg.config.options import instead, refuse_unknown
from covidseg.config.paths import CONF, EXPERIMENTS
from covidseg.config.plain import expand_home, load_yaml
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.faults import DISK_FAULTS
from covidseg.system.scrub import secret_option, without_secrets
from covidseg.system.terminal import print_anything

BAD_INPUT, ENVIRONMENT, STOPPED = 2, 3, 130
_HOME = re.compile(r"^([^=~]+=)~(?=/|$)")  # of key=~/path, whose ~ Hydra's grammar refuses and no shell expands


def application(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn `def main(cfg)` into the program that composes `conf/<config_name>.yaml` with the command line."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            with one_line_errors(cfg.get("debug", False)):
                refuse_unknown(cfg, config_name)
                expand_home(cfg)
                return task(cfg)

        @functools.wraps(task)
        def program() -> None:
            print_anything()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing it
            # Before torch loads OpenMP: threads that spin while they wait made a step 9 times slower on busy cores.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            debug = "debug=true" in (argument.lower() for argument in sys.argv)
            sys.argv[1:] = [_HOME.sub(lambda option: option[1] + os.path.expanduser("~"), one) for one in sys.argv[1:]]
            # argparse, below Hydra, refuses a flag that stands among the overrides
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
            if {"--help", "-h"} & set(sys.argv) and (told := own_help(config_name, _example(task))):
                print(told)
                return
            with one_line_errors(debug, config_name):
                _refuse_secrets(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()

        return program

    return decorate


def _example(task: Callable[..., Any]) -> str:
    """The first line of the command's module, which shows how it is called."""
    return (sys.modules[task.__module__].__doc__ or "").splitlines()[0]


def _refuse_secrets(arguments: Iterable[str]) -> None:
    """Before Hydra sees them, which writes what it was given into files of its own."""
    for key in filter(None, map(secret_option, arguments)):
        wrong = "a secret on the command line is seen by everyone on this machine, and no option takes one"
        raise BadInput(key.lstrip("+~"), wrong, "wandb login, or the environment variable WANDB_API_KEY")


@contextmanager
def one_line_errors(debug: bool, config_name: str | None = None) -> Iterator[None]:
    """Print an expected error as one line on stderr and exit with its status; let a bug keep its traceback.

    `config_name`: the primary config in whose keys and groups a mistyped option is looked up.
    """
    try:
        yield
    except CovidSegError as error:
        _leave(error, str(error), error.exit_code, debug)
    except MemoryError as error:
        _leave(error, "memory: exhausted -> use a smaller patch or batch, or a machine with more", ENVIRONMENT, debug)
    except (HydraException, OmegaConfBaseException) as error:
        if own := _own_cause(error):
            _leave(error, str(own), own.exit_code, debug)
        _leave(error, _explain(error, config_name), BAD_INPUT, debug)
    except OSError as error:  # where no component knows better, as in Hydra's own folders
        if error.errno not in DISK_FAULTS:
            raise
        name = Path(str(error.filename)).name
        _leave(error, f"{name}: {os.strerror(error.errno)} -> {DISK_FAULTS[error.errno]}", ENVIRONMENT, debug)
    except KeyboardInterrupt as error:  # before or after the work, which has words of its own
        _leave(error, "stopped by Ctrl-C -> the same command starts again", STOPPED, debug)


def _own_cause(error: BaseException | None) -> CovidSegError | None:
    """The error of this suite that a resolver raised, and that OmegaConf wrapped."""
    while error is not None and not isinstance(error, CovidSegError):
        error = error.__cause__ or error.__context__
    return error


def _leave(error: BaseException, message: str, status: int, debug: bool) -> NoReturn:
    if debug:
        raise error
    print("error: " + without_secrets(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)


def _explain(error: Exception, config_name: str | None) -> str:
    """Hydra's or OmegaConf's message as: which option, what is wrong with it, what to write instead."""
    text = str(error)
    if group := re.search(r"Could not find '([^']+)'", text):
        folder, _, wanted = group[1].rpartition("/")
        options = _choices().get(folder, [])
        remedy = f"{did_you_mean(wanted, options, cutoff=0.5)}one of {', '.join(options)}"
        return f"{folder}={wanted}: there is no such choice -> {remedy}"
    if slot := re.search(r"Could not override '(model/(?:variation|pyramid))'", text):
        return f"{slot[1]}: the chosen network has no such slot -> {_slot_owners(slot[1].split('/')[1])}"
    if key := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text):
        full = re.search(r"full_key: (\S+)", str(getattr(error, "__cause__", "") or text))
        wanted = full[1] if full else key[1]
        if wanted.startswith("hydra.launcher."):
            return f"{wanted}: this launcher has no such option -> {_launcher_options()}"
        return f"{wanted}: there is no such option -> {instead(wanted, config_name or 'train')}"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}: has no value -> give it on the command line: {missing[1]}=..."
    if several := re.search(r"Ambiguous value for argument '([^']+)'", text):
        option, _, value = several[1].partition("=")
        quoted = f"a list stands in brackets, a text in quotes: '{option}=\"{value}\"'"
        return f"{several[1]}: are several values -> -m runs each of them; {quoted}"
    if "raised while composing config" in text and "launcher" in text:
        return "hydra/launcher: cannot be chosen by itself -> launcher=pool or launcher=slurm"
    return _wrong_value(text) or f"configuration: {text.splitlines()[0]} -> --help shows the options"


def _wrong_value(text: str) -> str | None:
    """The offending override itself, where Hydra's grammar refused it."""
    for argument in sys.argv[1:]:
        if argument.startswith("-"):
            continue
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException:
            return f"{argument}: is not of the form key=value -> quote a value with special characters: 'key=\"a b\"'"
    return None


def _choices() -> dict[str, list[str]]:
    """The choices of every config group."""
    choices: dict[str, list[str]] = {}
    for root, base in ((CONF, CONF), (EXPERIMENTS, EXPERIMENTS.parent)):
        for file in sorted(root.rglob("*.yaml")):
            choices.setdefault(file.relative_to(base).parent.as_posix(), []).append(file.stem)
    return choices


def _launcher_options() -> str:
    """What each launcher takes, read from its YAML file."""
    files = sorted((CONF / "launcher").glob("*.yaml"))
    return "; ".join(f"launcher={file.stem}: {', '.join(OmegaConf.load(file).hydra.launcher)}" for file in files)


def _slot_owners(slot: str) -> str:
    """Which networks have a slot, read from their YAML files."""
    owners = [
        file.stem
        for file in sorted((CONF / "model").glob("*.yaml"))
        if any(slot in entry for entry in load_yaml(file).get("defaults", []) if isinstance(entry, DictConfig))
    ]
    return f"networks with a {slot} slot: {', '.join(owners)}"
