"""What every row of the tables costs, from shapes alone: parameters, multiply-adds, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import hydra
import torch
from omegaconf import DictConfig

from covidseg.config.paths import EXPERIMENTS
from covidseg.config.plain import as_dict
from covidseg.nets.cost import bytes_for_backward, meta_network, multiply_adds, parameters
from covidseg.system.files import json_text, write_text

GIB = 2**30
PAPER = (
    *("fcn", "unet3d", "vnet", "unetpp", "covidsegnet"),
    *("unet4", "cab", "ceb", "psb", "fv", "aspp", "resaspp", "paspp", "full"),
)


@dataclass(frozen=True)
class Measured:
    """What all rows cost at one size and batch size."""

    size_zyx: tuple[int, ...]
    batch_size: int
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """By the section `networks` of conf/benchmark.yaml."""
        rows = [measure(table, row, options) for table, row in all_rows()]
        return cls(tuple(options["size_zyx"]), options["batch_size"], rows)

    @property
    def table(self) -> str:
        """As Markdown."""
        return markdown(self.rows)

    @property
    def text(self) -> str:
        """The table, and above it what it holds."""
        z, y, x = self.size_zyx
        about = [
            f"10^9 multiply-adds (MAC) of one prediction at {x} x {y} x {z}, and GiB kept for the backward pass at",
            f"batch {self.batch_size} in float32, without and with `model.checkpoint_activations=true`.",
        ]
        return "\n".join([*about, "", self.table])

    def files(self) -> dict[str, str]:
        """{name: text} of the files that hold it."""
        numbers = {"torch": torch.__version__.partition("+")[0], **asdict(self)}
        return {"networks.md": self.text + "\n", "networks.json": json_text(numbers)}


def run(cfg: DictConfig) -> None:
    """Print the table; write it and its numbers to `cfg.output`."""
    measured = Measured.of(cfg.networks)
    print(measured.text)
    for name, text in measured.files().items():
        write_text(Path(cfg.output) / name, text)


def all_rows() -> list[tuple[str, str]]:
    """(table, row) of every row's file, in the paper's order; rows that it does not have come last."""
    rows = [(file.parent.name, file.stem) for file in EXPERIMENTS.glob("table*/*.yaml")]
    return sorted(rows, key=lambda row: (row[0], PAPER.index(row[1]) if row[1] in PAPER else len(PAPER), row[1]))


def measure(table: str, row: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One row's network by name, and its cost at `options.size_zyx` and `options.batch_size`."""
    config = hydra.compose("train", overrides=[f"experiments/{table}={row}"], return_hydra_config=True)
    choices = config.hydra.runtime.choices
    network = meta_network(config.model)
    size, batch = options["size_zyx"], options["batch_size"]
    return {
        "table": table,
        "row": row,
        "model": choices["model"],
        "variation": choices.get("model/variation"),
        "pyramid": choices.get("model/pyramid"),
        "parameters": parameters(network),
        "published_parameters": options["published"].get(choices["model"]),
        "multiply_adds": multiply_adds(network, size),
        "bytes_for_backward": bytes_for_backward(network, batch, size),
        "bytes_for_backward_recomputing": _recomputing(config.model, batch, size),
    }


def _recomputing(model: DictConfig, batch_size: int, size_zyx: Sequence[int]) -> int | None:
    """None for a network that cannot: other libraries' keep to their own options."""
    if "checkpoint_activations" not in model:
        return None
    return bytes_for_backward(meta_network({**as_dict(model), "checkpoint_activations": True}), batch_size, size_zyx)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| table | row | model | variation | pyramid | parameters | in its paper | 10^9 MAC | GiB kept | recomputing |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            row["table"],
            row["row"],
            row["model"],
            row["variation"] or "",
            row["pyramid"] or "",
            f"{row['parameters']:,}",
            row["published_parameters"] or "",
            f"{row['multiply_adds'] / 1e9:,.1f}",
            _gib(row["bytes_for_backward"]),
            _gib(row["bytes_for_backward_recomputing"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gib(number: int | None) -> str:
    return "" if number is None else f"{number / GIB:.2f}"
