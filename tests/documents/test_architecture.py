"""What docs/architecture.md says of the code is there."""

import importlib
import re
from pathlib import Path

import pytest

import covidseg

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(covidseg.__file__).parent
ROOMS = [path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith(("_", "share"))]
SPANS = re.findall(r"`([a-z_]+(?:\.\w+)+)`", TEXT)
NAMES = sorted({span for span in SPANS if span.partition(".")[0] in ROOMS and not span.endswith(".html")})


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_walks_is_there(name):
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["covidseg", *parts[:depth]]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            found = getattr(found, part)
        return
    pytest.fail(f"{name} is not there")


def test_every_room_is_described():
    assert len(NAMES) > 25
    table = TEXT.partition("## The rooms")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", table.partition("|---|---|")[2])) == set(ROOMS)


def test_files_that_are_named_are_there():
    root = Path(__file__).parents[2]
    for path in re.findall(r"`((?:conf|tests|experiments|docs)/[\w./-]+\.\w+)`", TEXT):
        assert (root / path).is_file(), path
