"""From the command to its files: the parts one after the other, each written as soon as it is there."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from covidseg.benchmark.contest import hardware
from covidseg.benchmark.gpu import ceilings, layers, profile, steps, whole
from covidseg.benchmark.gpu.clock import device
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.system.errors import BadInput
from covidseg.system.faults import is_out_of_memory
from covidseg.system.files import json_text, read_json, write_text


def run(cfg: DictConfig) -> None:
    """Print each table as it is there and write `gpu.md` and `gpu.json` to `cfg.output`.

    Once `gpu.minutes` are over nothing new is begun. What the files hold of the same machine and software stays, so
    that the parts may be measured in several calls. Without a GPU the CPU rehearses: numbers that mean nothing.
    """
    warnings.filterwarnings("ignore")  # the peers' words to their own users
    options, began = cfg.gpu, time.monotonic()
    book = _Book.open(Path(cfg.output))
    print(book.head)

    def has_time() -> bool:
        return time.monotonic() - began < 60 * float(options.minutes)

    def rate() -> float:
        if "ceilings" not in book.sheets:
            book.add("ceilings", parts["ceilings"])
        return ceilings.matrix_rate(book.sheets["ceilings"])

    parts: dict[str, Callable[[], Sheet]] = {
        "ceilings": lambda: ceilings.measured(options),
        "step": lambda: steps.ways(options, rate()),
        "profile": lambda: profile.measured(options),
        "layers": lambda: layers.measured(options, rate(), has_time),
        "scan": lambda: whole.scan(cfg),
        "runs": lambda: whole.runs(cfg),
        "compiled": lambda: steps.compiled(options, rate()),
        "rows": lambda: steps.rows(options, rate(), has_time),
    }
    if unknown := [part for part in options.parts if part not in parts]:
        raise BadInput(f"gpu.parts={unknown}", "there is no such part", f"some of {', '.join(parts)}")
    for part in options.parts:
        if has_time():
            book.add(part, parts[part])
        else:
            print(f"\n{part}: no time")


class _Book:
    """The tables of one machine and its software, and their files."""

    def __init__(self, folder: Path, machine: Mapping[str, Any], sheets: dict[str, Sheet]):
        self.folder, self.machine, self.sheets = folder, machine, sheets

    @classmethod
    def open(cls, folder: Path) -> "_Book":
        """With the tables that lie there already, if they are of this machine and software."""
        machine = {**hardware(), "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
        file = folder / "gpu.json"
        before = read_json(file) if file.is_file() else {}
        kept = before["parts"] if before.get("hardware") == machine else {}
        return cls(folder, machine, {part: Sheet(**sheet) for part, sheet in kept.items()})

    @property
    def head(self) -> str:
        """Machine and software in a line."""
        own, software = self.machine, dict(self.machine["versions"])
        software |= {name: own[name] for name in ("cuda", "cudnn") if own[name]}
        told = ", ".join(f"{name} {number}" for name, number in software.items())
        return f"{own['device']}, {own['cores']} cores; {told}."

    def add(self, part: str, make: Callable[[], Sheet]) -> None:
        """Measure, print and keep."""
        began = time.monotonic()
        try:
            sheet = make()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            sheet = Sheet(part, {}, told=["out of memory"])
        sheet.told = [*sheet.told, f"Measured in {time.monotonic() - began:.0f} s."]
        self.sheets[part] = sheet
        print(f"\n{sheet.markdown}", flush=True)
        write_text(self.folder / "gpu.md", "\n\n".join(["# gpu", self.head, *self._tables]) + "\n")
        sheets = {name: asdict(one) for name, one in self.sheets.items()}
        write_text(self.folder / "gpu.json", json_text({"hardware": self.machine, "parts": sheets}))
        if device().type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _tables(self) -> list[str]:
        return [sheet.markdown for sheet in self.sheets.values()]
