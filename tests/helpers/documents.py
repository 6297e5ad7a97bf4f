"""Every command line that the project shows to a reader, wherever it shows it."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from covidseg.config.paths import ROOT

SHELL = {"bash", "sh", "shell", "console"}
# An inline code that starts with one of these and goes on is a command; so is a script with its options.
WORDS = "python|python3|make|covidseg|pip|wandb|sbatch|squeue|git|bash|source|torchrun"
COMMAND = re.compile(rf"(?:(?:{WORDS}) |(?:src/)?\w+\.py )\S")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPTION = re.compile(r"'?\+?[a-z][\w/]*(?:\.\w+)*=.+")
BARE = re.compile(r"\s*#?\s*((?:python (?:src/|-m covidseg)|covidseg [a-z]+ \S+=).*)")  # a line of its own


@dataclass(frozen=True)
class Command:
    """A command line as it stands in a document."""

    document: str  # below the root
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def documents() -> list[Path]:
    """What a user reads, in the order in which a reader would, including what is in the sources."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
    found += [ROOT / "Makefile", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    found += sorted(path for path in (ROOT / "conf").rglob("*") if path.suffix in (".md", ".yaml"))
    found += sorted((ROOT / "experiments").rglob("*.yaml")) + sorted((ROOT / "src").rglob("*.py"))
    return [path for path in found if not {"results", "local"} & set(path.parts) or path.name == "README.md"]


EXTEND = "docs/extend.md"  # whose commands need the files that it shows: tests/documents/test_extend.py


def all_commands() -> list[Command]:
    return [command for path in documents() for command in commands_of(path)]


def commands_of(path: Path) -> list[Command]:
    """The commands of one document, in its order."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    lines = _notebook(text) if path.suffix == ".ipynb" else list(enumerate(text.splitlines(), start=1))
    if path.name == "Makefile":
        found = list(_targets(lines))
    elif path.suffix == ".md":
        found = list(_prose(lines))
    else:
        found = list(_inline(lines, bare=True))
    return [Command(name, line, command) for line, command in found]


def commands_in(text: str, name: str) -> list[Command]:
    """Those of a printed text, as of `--help`."""
    found = _inline(enumerate(text.splitlines(), start=1), bare=True)
    return [Command(name, line, command) for line, command in found]


def options_of(path: Path) -> list[tuple[int, str]]:
    """The options, key=value, that stand alone as inline code, with their lines."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return [(number, code) for number, line in lines for code in INLINE.findall(line) if OPTION.fullmatch(code)]


def _prose(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Each line of a shell block, and the commands that are inline code outside of blocks."""
    fence, begun, start = None, "", 0
    for number, line in lines:
        if line.lstrip().startswith("```"):
            fence = line.strip().strip("`") or "text" if fence is None else None
        elif fence is None:
            yield from _inline([(number, line)])
        elif fence in SHELL:
            start = start if begun else number
            begun += line.strip().removeprefix("$ ")
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            if begun and not begun.startswith("#"):
                yield start, begun
            begun = ""


def _inline(lines, bare: bool = False) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if bare and (alone := BARE.fullmatch(line)):
            yield number, alone[1]
            continue
        yield from ((number, code) for code in INLINE.findall(line) if COMMAND.match(code))


def _targets(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The targets that `make help` lists."""
    for number, line in lines:
        if target := re.match(r"([a-z-]+):.*## ", line):
            yield number, f"make {target[1]}"


def _notebook(text: str) -> list[tuple[int, str]]:
    """Prose of a notebook, and the shell lines of its code cells as inline code; numbered by cell."""
    lines = []
    for number, cell in enumerate(json.loads(text)["cells"], start=1):
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown":
                lines.append((number, line))
            elif line.startswith(("!", "%%bash")):
                lines.append((number, f"`{line.lstrip('!')}`"))
    return lines
