"""Training curves of the contenders, one panel each: their losses are not the same quantity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from covidseg.system.files import atomic_path

Curve = Sequence[tuple[float, float]]  # (seconds, loss)


def draw(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Write a PNG: a panel for each contender, a line for each fold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * max(len(curves), 1), 2.8), layout="constrained")
    for axes, (title, folds) in zip(
        figure.subplots(1, max(len(curves), 1), squeeze=False)[0], curves.items(), strict=False
    ):
        for number, curve in enumerate(folds):
            axes.plot([seconds / 60 for seconds, _ in curve], [loss for _, loss in curve], label=f"fold {number}", lw=1)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("minutes of training", fontsize=8)
        axes.set_ylabel("training loss", fontsize=8)
        axes.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=150)
