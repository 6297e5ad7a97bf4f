"""Tracking watches a run and must never change it: a fault becomes one warning, and the run goes on."""

import functools
from collections.abc import Callable
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from covidseg.system.scrub import scrub_text


class Guarded:
    """Base of a logger whose `guarded` methods stop working, instead of raising, after the first fault."""

    what: str  # how the warning calls it
    alive = True

    def give_up(self, error: BaseException) -> None:
        """Say once what went wrong, without the machine's paths, and be silent from now on."""
        if not self.alive:
            return
        self.alive = False
        reason = scrub_text((str(error).strip().splitlines() or [""])[0])[:200]
        rank_zero_warn(f"{self.what}: tracking stopped ({type(error).__name__}: {reason}); the run goes on without it")


def guarded(method: Callable) -> Callable:
    """Wrap a method of a `Guarded`: None where the tracker has given up or gives up now."""

    @functools.wraps(method)
    def call(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        if not self.alive:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.give_up(error)
            return None

    return call
