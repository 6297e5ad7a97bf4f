"""When this process began: the moment its first module of the suite was loaded, some tenths of a second later."""

import time

_BEGAN = time.monotonic()


def age() -> float:
    """Seconds since this process began."""
    return time.monotonic() - _BEGAN
