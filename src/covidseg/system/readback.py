"""What is read back from disk is a stranger's: its shape is told before anything is done with it.

A shape is a type, or several in a tuple; `[shape]` is a list of such things, `[shape, shape, shape]` one of just so
many; `{"key": shape, "key?": shape}` a mapping with these keys (`?`: may be missing or null), whatever else it holds;
`{...: shape}` a mapping of any text to such things; a set of values is a choice; a compiled pattern is text that
matches it as a whole.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from covidseg.system.errors import BadInput

NUMBER = (int, float)
_MAX_TEXT = 1 << 20


def require_shape(value: Any, shape: Any, what: str, remedy: str) -> Any:
    """`value`, if it has the shape; else `BadInput` naming the first place where it has not."""
    if wrong := mismatch(value, shape):
        raise BadInput(what, wrong, remedy)
    return value


def mismatch(value: Any, shape: Any, at: str = "") -> str:
    """Where and how `value` differs from `shape`; "" if it does not."""
    if isinstance(shape, dict):
        return _mapping_mismatch(value, shape, at)
    if isinstance(shape, list):
        return _list_mismatch(value, shape, at)
    if isinstance(shape, set):
        fits = isinstance(value, str | int | None) and value in shape
        return "" if fits else f"{at or 'it'} is none of {', '.join(map(str, sorted(shape, key=str)))}"
    if isinstance(shape, re.Pattern):
        return "" if isinstance(value, str) and shape.fullmatch(value) else f"{at or 'it'} is not what it should be"
    return "" if _is_of(value, shape) else f"{at or 'it'} is {_kind(value)}"


def _mapping_mismatch(value: Any, shape: Mapping[Any, Any], at: str) -> str:
    if not isinstance(value, Mapping):
        return f"{at or 'it'} is {_kind(value)}, not a mapping"
    for key, inner in shape.items():
        if key is ...:
            for name, one in value.items():
                if wrong := mismatch(one, inner, f"{at}.{name}".lstrip(".")):
                    return wrong
            continue
        name = key.removesuffix("?")
        optional = key.endswith("?")
        if value.get(name) is None and optional:
            continue
        if name not in value:
            return f"{at or 'it'} lacks {name}"
        if wrong := mismatch(value[name], inner, f"{at}.{name}".lstrip(".")):
            return wrong
    return ""


def _list_mismatch(value: Any, shape: list, at: str) -> str:
    if not isinstance(value, list):
        return f"{at or 'it'} is {_kind(value)}, not a list"
    if len(shape) > 1 and len(value) != len(shape):
        return f"{at or 'it'} has {len(value)} entries, not {len(shape)}"
    each = shape if len(shape) > 1 else shape * len(value)
    for position, (one, inner) in enumerate(zip(value, each, strict=True)):
        if wrong := mismatch(one, inner, f"{at}[{position}]"):
            return wrong
    return ""


def _is_of(value: Any, kinds: Any) -> bool:
    """Whether a value is of one of the kinds; true is no number, and text and numbers have an end."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, str):
        return str in kinds and len(value) <= _MAX_TEXT
    if isinstance(value, int):
        return (int in kinds or float in kinds) and abs(value) < 1 << 63
    if isinstance(value, float):
        return float in kinds and math.isfinite(value)
    return isinstance(value, kinds)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    text = f"{type(value).__name__} {value!r}" if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) < 60 else text[:56] + " ..."
