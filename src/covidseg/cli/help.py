"""The help of a command without config groups: its own file, comments included, not Hydra's list of all groups."""

from covidseg.config.options import groups_of
from covidseg.config.paths import CONF

_HIDDEN = ("defaults:", "hydra:")


def own_help(command: str, example: str) -> str | None:
    """What `--help` prints for a command; None where Hydra's own help, with the groups, says more."""
    groups = groups_of(command)
    if len(groups) > 1:
        return None
    lines = (CONF / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.lstrip("# ") for line in lines[: _first_key(lines)]]
    choices = [f"{group}: {', '.join(sorted(file.stem for file in (CONF / group).glob('*.yaml')))}" for group in groups]
    heads = ["== Config ==", "Give any of these as key=value."]
    return "\n".join([*about, "", example, "", *heads, "", *choices, *_shown(lines)])


def _first_key(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if line and not line.startswith("#"))


def _shown(lines: list[str]) -> list[str]:
    """The lines of the file's own options, without what only Hydra reads."""
    kept: list[str] = []
    hidden = True
    for line in lines[_first_key(lines) :]:
        if line and not line.startswith((" ", "#")):
            hidden = line.startswith(_HIDDEN)
        if not hidden and (line or (kept and kept[-1])):
            kept.append(line)
    return kept
