"""`python src/prepare.py`: raw scans and masks -> checked, prepared cases, with a table of what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGINT
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from covidseg.cli.app import application
from covidseg.config.build import instantiate
from covidseg.config.options import switch
from covidseg.config.plain import as_dict
from covidseg.data.download import Record, fetch
from covidseg.data.prepare import run as preparation
from covidseg.data.prepare.folder import reason
from covidseg.data.prepare.run import Outcome
from covidseg.data.store import PreparedDataset, whole_ml
from covidseg.scans.gate.names import printable
from covidseg.system.errors import BadInput, Interrupted
from covidseg.system.terminal import window_progress


@application("prepare")
def main(cfg: DictConfig) -> None:
    """Prepare (or only check) the configured data set and print what was found."""
    check_only, options = switch(cfg, "check_only"), preparation.plain(cfg.data)
    try:
        if switch(cfg, "download"):
            download(options, Console())
        planning = switch(cfg, "plan")
        if check_only or planning:
            outcome = preparation.check(options)
        elif options["prepared"]:
            outcome = preparation.opened(Path(str(options["prepared"])).expanduser())
        else:
            outcome = preparation.run(options, Path(cfg.paths.data))
    except KeyboardInterrupt as error:
        raise Interrupted("prepare", "stopped", "the same command goes on with what is missing", SIGINT) from error
    console = Console()
    show(outcome, console)
    if outcome.dataset and switch(cfg, "contact_sheet"):
        draw(outcome.dataset, options["window"], console)
    outcome.complain(options["allow_refused"])
    if planning:
        make_plan(cfg, options, outcome, console)


def make_plan(cfg: DictConfig, options: Mapping[str, Any], outcome: Outcome, console: Console) -> None:
    """Plan voxel size, patch, width and batch for the data and this machine, and say why."""
    from covidseg.training.planning import plan

    limit = cfg.plan_memory_gb
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise BadInput(f"plan_memory_gb={limit}", "is no memory", "give GB, or leave it out to measure")
    model, name = as_dict(cfg.model), str(HydraConfig.get().runtime.choices["model"])
    found = plan(outcome.infos, model, name, None if limit is None else int(limit * 1e9))
    path = found.save(str(cfg.paths.data), options["name"])
    patch, spacing = ",".join(map(str, found.patch_size_zyx)), ",".join(f"{mm:g}" for mm in found.spacing_zyx)
    lines = (
        *found.why,
        f"data.spacing_zyx=[{spacing}] training.patch_size_zyx=[{patch}] training.batch_size={found.batch_size} "
        f"model.width={found.width}",
        f"{path}: used by recipe=planned",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def download(options: dict[str, Any], console: Console) -> None:
    """Fetch the configured data set into data.root, and say what came of it."""
    converter = instantiate(options["source"], "data", "data.source.")
    published = getattr(converter, "published", None)
    if not isinstance(published, Record):
        what = f"is {published}" if published else "is nothing that is published"
        remedy = "download it there, and give its folder: data.root=..." if published else "drop download=true"
        raise BadInput(f"data={options['name']}", what, remedy)
    if options["root"] is None:
        raise BadInput("data.root", "has no value", "give the folder to download into: data.root=...")
    root = Path(str(options["root"])).expanduser()
    where = f"{published.doi}, {published.licence}: into {root}"
    console.print(where, markup=False, highlight=False, soft_wrap=True)
    with window_progress(console) as bar:
        done = fetch(published, root, bar)
    for line in done:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw(dataset: PreparedDataset, window: Sequence[float], console: Console) -> None:
    """Write the contact sheets into the prepared folder, and say where they are."""
    from covidseg.figures.sheets import contact_sheets  # matplotlib

    sheets = contact_sheets(list(dataset.cases.values()), window, dataset.folder)
    names = ", ".join(sheet.name for sheet in sheets)
    console.print(f"look at {names} in {dataset.folder}", markup=False, highlight=False, soft_wrap=True)


def show(outcome: Outcome, console: Console) -> None:
    """The table of the cases, what was noticed about each, how they are divided, where they lie."""
    console.print(case_table(outcome))
    notes = [f"{info['id']}: {note}" for info in outcome.infos for note in info["notes"]]
    notes += [f"{name} REFUSED: {reason(name, error)} -> {error.remedy}" for name, error in outcome.refused]
    for line in [*notes, *(f"note: {note}" for note in outcome.notes)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    accepted, refused = len(outcome.infos), len(outcome.refused)
    line = f"{accepted} cases" + (f", {refused} refused" if refused else "")
    if outcome.dataset:
        line += f" in {outcome.folder}"
    if outcome.sides:
        line += f": {split_sizes(outcome)}"
        if outcome.folds and not outcome.sides["test"] + outcome.sides["external"]:
            line += f"; no test set, {outcome.folds} folds for cross-validation"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def case_table(outcome: Outcome) -> Table:
    """One line for each accepted case: who, which side of the split, grid, volumes.

    A column that would say nothing (no sites, each case its own patient) leaves its room to the others.
    """
    sides = {case: side for side, cases in outcome.sides.items() for case in cases}
    lines = []
    for info in outcome.infos:
        native = info["grid"]["native"]
        lines.append(
            {
                "case": info["id"],
                "patient": info["patient"] if info["patient"] != info["id"] else "",
                "site": info["site"],
                "set": sides.get(info["id"], ""),
                "size z, y, x": " ".join(map(str, native["shape_zyx"])),
                "mm z, y, x": " ".join(f"{mm:.3g}" for mm in native["spacing_zyx"]),
                "lung ml": _ml(info, "lung"),
                "lesion ml": _ml(info, "lesion"),
            }
        )
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)  # 80 columns hold a name of twenty letters
    names = [name for name in (lines[0] if lines else ()) if any(line[name] for line in lines)]
    for name in names:
        right, text = name.endswith(("ml", "x")), name in ("case", "patient", "site")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=not text)
    for line in lines:
        table.add_row(*(escape(printable(line[name])) for name in names))
    return table


def split_sizes(outcome: Outcome) -> str:
    """Cases and patients on each side of the fixed split, on one line."""
    patient = {info["id"]: info["patient"] for info in outcome.infos}
    parts = []
    for side, cases in outcome.sides.items():
        if cases:
            parts.append(f"{side} {len(cases)} ({len({patient[case] for case in cases})} patients)")
    return ", ".join(parts)


def _ml(info: dict[str, Any], name: str) -> str:
    """Volume of a structure; "-" where it is not annotated."""
    whole = whole_ml(info, name)
    if whole is None:
        return "-"
    return f"{whole:.0f}" if whole >= 10 else f"{whole:.1f}"


if __name__ == "__main__":
    main()
