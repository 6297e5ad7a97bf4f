"""Hashes of plain values and of source code, which name what was made from them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """sha256 of plain containers, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(files: Iterable[Path]) -> str:
    """sha256 of source code: what an edited rule makes is never taken for what the old one made."""
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
