"""What was probably meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(wanted: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean X? `, or "" where nothing that is known resembles `wanted` by at least `cutoff`."""
    match = difflib.get_close_matches(str(wanted), list(known), n=1, cutoff=cutoff)
    return f"did you mean {match[0]}? " if match else ""
