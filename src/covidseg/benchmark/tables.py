"""`make tables`: the tables that documents hold, written anew from what they are about.

In a document a table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; all else is left as it is.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median

from hydra import compose, initialize_config_dir

from covidseg.benchmark import networks
from covidseg.benchmark.contest import OURS, TUNED, USUAL, milliseconds
from covidseg.benchmark.versus.sheet import differences, from_plain
from covidseg.config.paths import CONF, ROOT
from covidseg.evaluation.metrics import BY_FORMULA, METRICS, UNDEFINED, Metric
from covidseg.system.files import csv_lines, read_json, write_text

DOCUMENTS = (
    "README.md",
    "docs/reference.md",
    "docs/how-to/reproduce-public.md",
    "experiments/README.md",
    "experiments/lung-box/README.md",
)
_GPU = Path("experiments") / "benchmarks" / "gpu-h200.json"
_SWEEPS = {"comparison": "table1", "ablation": "table2"}  # of public data: each row, two tasks, five folds, three seeds
_RUNS_OF_A_ROW, _DEVICES = 2 * 5 * 3, 6
_PLACE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def generated(root: Path = ROOT) -> dict[Path, str]:
    """{file: its text as it should be} of every file of the checkout `root` that holds a table."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        steps = compose("train").training.max_steps
        measured = networks.Measured.of(compose("benchmark", overrides=["suite=networks"]).networks)
    tables = {
        "networks": lambda: measured.table,
        "metrics": lambda: _markdown(("metric", "definition"), (_definition(metric) for metric in METRICS)),
        "empty-masks": _empty_masks,
        "public-hours": lambda: _public_hours(measured, steps, _step_rate(root / _GPU)),
        "speed": lambda: _speed(root / "experiments" / "benchmarks" / "all.json"),
        "gpu": lambda: _gpu(root / _GPU),
        "lung-box": lambda: _lung_box(root / "experiments" / "lung-box"),
        "measured": lambda: _measured(root / "experiments"),
        "versus-covid": lambda: (root / "experiments" / "versus" / "covid8" / "versus.md").read_text().strip(),
        "recipe": lambda: _recipe(root / "experiments" / "recipe"),
        "blocks-covid": lambda: _results(root / "experiments" / "table2" / "results-covid8"),
        "blocks-phantom": lambda: _results(root / "experiments" / "table2" / "results-phantom"),
    }
    files = {root / "experiments" / name: text for name, text in measured.files().items()}
    return files | {root / name: filled((root / name).read_text(encoding="utf-8"), tables) for name in DOCUMENTS}


def filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """`text` with each table in its place. Raises `KeyError` for a place of a table that is not known."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{tables[place['name']]()}\n\n{place[3]}", text)


def _definition(metric: Metric) -> tuple[str, str]:
    better = "higher" if metric.higher_is_better else "lower"
    return f"{metric.heading} ({better} is better)", metric.definition.replace("|", "\\|")


def _public_hours(measured: networks.Measured, steps: int, teraflops: float) -> str:
    """What the two sweeps compute: forward and backward, twice the multiply-adds each way, three ways in all.

    `teraflops`: 10^12 of these operations a second, on each device.
    """
    rows = []
    for sweep, table in _SWEEPS.items():
        of_table = [row for row in measured.rows if row["table"] == table]
        each = sum(row["multiply_adds"] for row in of_table) * 2 * 3 * measured.batch_size * steps
        hours = each * _RUNS_OF_A_ROW / (teraflops * 1e12 * _DEVICES) / 3600
        kept = sum(row["parameters"] for row in of_table) * 4 * (3 + 3 + 1) * _RUNS_OF_A_ROW  # last, previous, best
        runs = len(of_table) * _RUNS_OF_A_ROW
        rows.append((sweep, str(runs), f"{each * _RUNS_OF_A_ROW / 1e18:,.0f}", f"{hours:.0f}", f"{kept / 1e9:.0f}"))
    header = ("sweep", "runs", "10^18 floating-point operations", "hours on six devices", "GB of checkpoints")
    return _markdown(header, rows)


def _recipe(folder: Path) -> str:
    """Validation Dice of a recipe with one part changed, and what that gains, on computed and on real scans."""
    phantom, real = (
        {row["method"]: row for row in csv_lines(folder / results / "table.csv")}
        for results in ("results-phantom", "results-covid8")
    )
    base = phantom["base"]
    lines = []
    for method, row in phantom.items():
        gain = "" if row is base else f"{float(row['dice_mean']) - float(base['dice_mean']):+.3f}"
        seen = real.get(method, {}).get("dice_mean")
        told = f"{float(seen):.3f}" if seen else ""
        numbers = (f"{float(row[column]):.3f}" for column in ("dice_mean", "dice_seeds_sd"))
        lines.append((row["title"], *numbers, gain, told))
    return _markdown(("part", "Dice, phantoms", "SD over seeds", "gain", "Dice, real scans"), lines)


def _results(folder: Path) -> str:
    """A finished table in short: each row's lesion Dice on the test set, and its difference from the baseline."""
    statistics = next(one for one in read_json(folder / "statistics.json")["sets"] if one["set"] == "test")
    against = {one["row"]: one for one in statistics["comparisons"] if one["metric"] == "dice"}
    lines = []
    for row in csv_lines(folder / "table.csv"):
        if row["set"] != "test" or row["structure"] != "lesion":
            continue
        cells = [row["title"], *(f"{float(row[f'dice_{part}']):.3f}" for part in ("mean", "sd", "median"))]
        if compared := against.get(row["method"]):
            interval = f"{compared['low']:+.3f} to {compared['high']:+.3f}"
            cells += [f"{compared['difference']:+.3f}", interval, f"{compared['p_holm']:.2f}"]
        lines.append([*cells, *[""] * (7 - len(cells))])
    return _markdown(("row", "Dice", "SD", "median", "difference", "95 % interval", "p (Holm)"), lines)


def _empty_masks() -> str:
    header = ("reference", "prediction", *(metric.title for metric in METRICS), "counted as")
    cases = (
        ("empty", "empty", "both_empty", "empty reference"),
        ("empty", "not empty", "false_alarm", "empty reference, false alarm"),
        ("not empty", "empty", "missed", "missed"),
    )
    rows = [
        (reference, prediction, *(_policy(getattr(metric, policy)) for metric in METRICS), counted)
        for reference, prediction, policy, counted in cases
    ]
    return _markdown(header, rows)


def _speed(file: Path) -> str:
    """Each contest of a machine: our CPU time, the fastest peer, and who wins by how much."""
    rows = []
    for contest in read_json(file)["contests"]:
        own = next(one for one in contest["outcomes"] if one["kind"] == OURS)
        peers = [one for one in contest["outcomes"] if one["kind"] in (USUAL, TUNED) and not one["absent"]]
        if not peers:
            continue
        best = min(peers, key=lambda one: median(one["ratio"]))
        kind = f", {TUNED}" if best["kind"] == TUNED else ""
        others = [f"{one['name']} {median(one['ratio']):.1f}" for one in peers if one is not best]
        figures = (milliseconds(median(own["cpu"])), f"{best['name']}{kind}", f"{median(best['ratio']):.2f}")
        rows.append((contest["contest"], *figures, "; ".join(others)))
    return _markdown(("work", "our CPU ms", "fastest peer", "its CPU time, ours = 1", "the others"), rows)


def _gpu(file: Path) -> str:
    """The training step of a GPU: ours, with each change, and the peers'."""
    parts = read_json(file)["parts"]
    together = [*parts["step"]["rows"], *(row for row in parts["compiled"]["rows"] if "compile" in row["way"])]
    own = float(together[0]["milliseconds"])
    rows = [
        (
            row["way"],
            f"{row['milliseconds']:.1f}",
            f"{row['milliseconds'] / own:.2f}",
            f"{row['teraflops']:.0f}",
            f"{row['share']:.0%}",
            f"{row['gigabytes']:.1f}",
        )
        for row in sorted(together, key=lambda row: float(row["milliseconds"]))
    ]
    return _markdown(("step", "ms", "ours = 1", "TFLOP/s", "of the matrix rate", "GB on top of weights"), rows)


def _measured(experiments: Path) -> str:
    """What the committed results come to, a line each: the row they are compared with, and the best one beside it."""
    rows = []
    for title, folder in (("blocks, real scans", "results-covid8"), ("blocks, phantoms", "results-phantom")):
        sets = read_json(experiments / "table2" / folder / "statistics.json")["sets"]
        found = next(one for one in sets if one["set"] == "test")
        lines = {line["method"]: line for line in found["lines"]}
        best = max((one for one in found["comparisons"] if one["metric"] == "dice"), key=lambda one: one["difference"])
        base, line = lines[best["baseline"]], lines[best["row"]]
        dice = (f"{one['title']} {one['metrics']['dice']['mean']:.3f}" for one in (base, line))
        numbers = (f"{best['difference']:+.3f}", f"{best['low']:+.3f} to {best['high']:+.3f}", f"{best['p_holm']:.2f}")
        rows.append((title, *dice, *numbers, f"{best['patients']}, {len(line['seeds'])}"))
    versus = read_json(experiments / "versus" / "covid8" / "versus.json")
    contenders = from_plain(versus["lines"])
    by_title = {contender.title: mean(contender.by_case("dice").values()) for contender in contenders}
    for one in differences(contenders):
        dice = (f"{title} {by_title[title]:.3f}" for title in (one.baseline, one.row))
        numbers = (f"{one.difference:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}", one.p_text)
        rows.append((f"{versus['minutes']:g} minutes, real scans", *dice, *numbers, f"{one.patients}, {one.seeds[0]}"))
    header = ("what", "compared with: Dice", "best: Dice", "difference where there is a lesion")
    return _markdown((*header, "95 % interval", "p", "patients, seeds"), rows)


def _step_rate(file: Path) -> float:
    """TFLOP/s of our training step as `train.py` runs it by default."""
    return float(read_json(file)["parts"]["step"]["rows"][0]["teraflops"])


def _lung_box(folder: Path) -> str:
    """What looking at the lungs' box alone changes in the Dice of each network's cases."""
    rows = []
    for file in sorted(folder.glob("*-body.csv")):
        name = file.stem.removesuffix("-body")
        body, lungs = (_dice(folder / f"{name}-{box}.csv") for box in ("body", "lungs"))
        for structure in sorted({part for _, part in body}):
            cases = [key for key in body if key[1] == structure]
            change = [lungs[key] - body[key] for key in cases]
            figures = (mean(body[key] for key in cases), mean(change), min(change), max(change))
            rows.append((name, structure, str(len(cases)), *(f"{figure:.4f}" for figure in figures)))
    return _markdown(("network", "structure", "n", "Dice, body", "mean change", "worst case", "best case"), rows)


def _dice(file: Path) -> dict[tuple[str, str], float]:
    return {(row["case"], row["structure"]): float(row["dice"]) for row in csv_lines(file) if row["dice"]}


def _policy(value: float | str | None) -> str:
    if value is UNDEFINED:
        return "undefined"
    return "by its definition" if value == BY_FORMULA else f"{value:g}"


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write every table that is stale, and say which."""
    for path, text in generated().items():
        if path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
