"""The rooms of the package: imports go downwards only, so that no two of them need each other."""

import ast
from pathlib import Path

import covidseg

ROOMS = (  # from the top down; each may import from those below it
    "cli", "report", "benchmark", "sweep", "training", "inference", "evaluation", "tracking", "figures", "runs", "data",
    "phantom", "scans", "nets", "blocks", "config", "system",
)  # fmt: skip
PACKAGE = Path(covidseg.__file__).parent
AT_THE_TOP = {"__init__", "__main__", "share"}


def imports(file):
    """Modules of the package that a file imports when it runs; what only a type checker reads is left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("covidseg.") for name in names if name.startswith("covidseg."))


def room(module):
    return module.partition(".")[0]


def test_every_module_lies_in_a_room():
    there = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert there - AT_THE_TOP - {"__pycache__"} == set(ROOMS)


def test_imports_go_downwards():
    upwards = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for own in ROOMS
        for file in (PACKAGE / own).rglob("*.py")
        for module in imports(file)
        if room(module) in ROOMS and ROOMS.index(room(module)) < ROOMS.index(own)
    ]
    assert upwards == []
