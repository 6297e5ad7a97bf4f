"""How the time of a run is told: shares of its parts, and what to change where it is not the training step."""

from collections.abc import Mapping

PARTS = ("starting", "preparing", "loader", "copy", "step", "validation", "checkpoint", "evaluating")
AROUND = ("starting", "preparing", "evaluating")  # the training
DURING = tuple(part for part in PARTS if part not in AROUND)
_ADVICE = {  # part -> share of the training from which it is worth a word, and the word
    "loader": (0.10, "the step waits for its data: raise training.loader_threads, or prepare onto a faster disk"),
    "copy": (0.10, "copying to the device holds the step up: lower training.batch_size, or look at the machine"),
    "validation": (0.34, "raise training.validate_every"),
    "checkpoint": (0.05, "raise training.checkpoint_every"),
}


def told(seconds: Mapping[str, float]) -> str:
    """The shares in a line, the largest first, and `advice`."""
    total = sum(seconds.values())
    if not total:
        return ""
    largest = sorted(seconds, key=lambda part: -seconds[part])
    shares = ", ".join(f"{part} {seconds[part] / total:.0%}" for part in largest if seconds[part] >= 0.005 * total)
    return "; ".join([shares, *advice(seconds)])


def in_short(seconds: Mapping[str, float] | None) -> str:
    """The share of the steps, and `advice`; "" where nothing is known."""
    total = sum((seconds or {}).values())
    return "; ".join([f"step {seconds['step'] / total:.0%}", *advice(seconds)]) if seconds and total else ""


def advice(seconds: Mapping[str, float]) -> list[str]:
    """What to change, where something else than the step takes much of the training; of no seconds, nothing."""
    if not seconds:
        return []
    training = sum(seconds[part] for part in DURING)
    return [word for part, (share, word) in _ADVICE.items() if training and seconds[part] > share * training]
