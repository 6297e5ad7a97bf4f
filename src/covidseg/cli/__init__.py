"""`covidseg <command> ...`: the installed form of the scripts under src/."""

import os
import sys

if os.name != "posix":  # before anything imports the locks that every run folder and prepared folder relies on
    print("error: this system: has no POSIX file locks -> use WSL 2, or the container (Dockerfile)", file=sys.stderr)
    sys.exit(3)

COMMANDS = {
    "train": "train one network, or sweep many with -m",
    "prepare": "check scans and masks and prepare them for training",
    "evaluate": "score a run, or a folder of masks, case by case",
    "predict": "masks and clinical figures for new scans",
    "report": "tables, statistics and figures of finished runs",
    "status": "what each run of a sweep is doing",
    "benchmark": "size, speed and memory beside the peers",
}


def main() -> None:
    """Become `python -m covidseg.cli.<command> ...`.

    A fresh interpreter rather than a call: Lightning starts the other processes of a run by repeating the command line
    in `sys.argv`, and that has to be one that can be repeated.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", f"covidseg.cli.{command}", *sys.argv[2:]])
    width = max(map(len, COMMANDS))
    usage = "usage: covidseg COMMAND [key=value ...]\n\n" + "\n".join(
        f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()
    )
    if command in ("--help", "-h", "help"):
        print(usage)
    elif command == "--version":
        from covidseg import __version__

        print(f"covidseg {__version__}")
    else:
        sys.exit(f"error: {command}: no such command -> one of {', '.join(COMMANDS)}")
