"""Every command line that a document shows is run as it stands there, and does what the document says.

The command stays as it is written; overrides that make it small are put behind it. What a reader has to fill in
(`<run folder>`) is filled in from one table, and what cannot run here stands in another one, with the reason. A new
command in a document is run without a change here.
"""

import csv
import re
from dataclasses import replace

import pytest
import SimpleITK as sitk

from covidseg.config.paths import ROOT
from covidseg.system.files import read_json
from documents import EXTEND, all_commands
from reading import ROWS, Call

# What cannot run in a test, and why or what runs it instead.
EXCUSED = {
    "git clone <this repository> covidseg && cd covidseg": "each folder here stands for such a clone",
    "make test": ".ci/run runs these tests by `make test-all`",
    "make test-all": ".ci/run",
    "make benchmark": "tests/benchmark/test_suites.py, each suite in small form; this one takes minutes",
    "make benchmark SUITE=loader": "the same",
    'make benchmark SUITE=versus ARGS="data=folder data.root=my_scans versus.minutes=60"': (
        "tests/benchmark/test_versus.py; nnU-Net needs an environment of its own"
    ),
    "make figures": "tests/report/test_viewer.py makes the pictures of a page; this one writes into docs/images",
    "make test-lowest": "these tests again, in an environment of their own",
    "make lint": ".ci/run",
    "make format": "writes into the sources; `make lint` says what it would do",
    "make clean": "removes the environment that everything here runs in",
    "python src/train.py sweep=ablation launcher=slurm hydra.launcher.partition=gpu": "tests/sweep/test_slurm.py",
    "wandb login": "needs an account",
    "wandb sync": "needs a server; tests/tracking/test_tracking.py reads the file that it would send",
    "python src/prepare.py data=covid19_ct_seg download=true": "tests/data/test_download.py, from a server here",
    "git lfs pull": "belongs to somebody else's repository of scans",
}

QUICK = ("prepare", "shell", "help")
NEED_NOTHING = ("demo", "benchmark")  # that was made before, and nothing after them needs what they make

COMMANDS = [command for command in all_commands() if command.text not in EXCUSED and command.document != EXTEND]
OWN_FOLDER = (
    "README.md",
    "docs/getting-started.md",
    "docs/how-to.md",
    "docs/how-to/reproduce-public.md",
)  # the other documents share one


def folder_of(command):
    return command.document if command.document in OWN_FOLDER else "elsewhere"


def parameters(quick):
    """The commands of seconds, and the others."""
    seen = set()
    for command in COMMANDS:
        call = Call(command)
        one_run = call.program == "train" and not call.option("sweep")
        alone = one_run or call.program in NEED_NOTHING  # run where a reader meets it first
        key = (None if alone else folder_of(command), call.line)
        if key not in seen and (call.program in QUICK) == quick:
            seen.add(key)
            yield pytest.param(command, id=str(command))


def test_every_excuse_is_needed():
    assert set(EXCUSED) <= {command.text for command in all_commands()}


@pytest.mark.parametrize("command", parameters(quick=True))
def test_quick_command(command, workspaces):
    """Checking, looking, asking for help: needs nothing that was made before."""
    follow(command, workspaces(folder_of(command)))


@pytest.mark.slow
@pytest.mark.parametrize("command", parameters(quick=False))
def test_command(command, workspaces):
    """In the order of the document, in one folder, as a reader does."""
    folder = workspaces(folder_of(command))
    for earlier in COMMANDS[: COMMANDS.index(command)]:
        needed = Call(earlier).program not in (*QUICK, *NEED_NOTHING)
        if needed and folder_of(earlier) == folder_of(command):
            for step in steps(earlier, folder):
                folder.once(step.line)
    follow(command, folder)


def steps(command, folder):
    """The command itself; of `make demo`, which takes no options, the commands that it prints."""
    call = Call(command)
    if call.program != "demo":
        return [call]
    return [Call(replace(command, text=line)) for line in folder.once(f"{call.text} -n").out.splitlines()]


def follow(command, folder):
    for step in steps(command, folder):
        done = folder.once(step.line)
        assert done.status == 0, done.err or done.out
        OUTCOMES[step.program](step, done, folder.root)


# What each program has to leave behind.


def helped(call, done, root):
    assert "== Config ==" in done.out and not done.written


def went_well(call, done, root):
    assert not done.err


def checked(call, done, root):
    """Every case of the data set was accepted, and each has its line."""
    cases = len(listed(root / call.option("data.root"), call.option("data")))
    assert f"\n{cases} cases" in done.out and "REFUSED" not in done.out
    assert bool(done.written) == (call.option("check_only") != "true")


def trained(call, done, root):
    if call.option("sweep"):
        return swept(call, done, root)
    if " -m " in call.text:  # one run for each value, named after it
        (option,) = [option for option in call.options if "," in option]
        key, _, values = option.partition("=")
        runs = list((root / "runs").glob(f"*/*-{key}-*/*/seed0"))
        assert len(runs) == len(values.split(",")) and f"all {len(runs)} runs are done" in done.out
        for run in runs:
            scored(run)
        return
    (name,) = set(re.findall(r"^([\w.-]+/[\w.-]+/[\w.-]+/seed[\w-]+)(?:: | is finished)", done.out, re.MULTILINE))
    scored(root / "runs" / name)


def scored(run):
    """Each structure of the run's task has scores over at least one held-out case."""
    sets = read_json(run / "metrics.json")["sets"]
    assert any(sets.get(name) for name in ("test", "external", "validation")), run
    assert all(part["dice"]["n"] >= 1 for structures in sets.values() for part in structures.values()), run
    with open(run / "cases.csv", newline="") as stream:
        assert {row["set"] for row in csv.DictReader(stream)} == set(sets)


def swept(call, done, root):
    """All rows and folds are there and scored, and so is the table."""
    table, rows = ROWS.get(call.option("sweep"), ("demo", ["full", "unet4"]))
    folds = [0, 1] if call.two_folds else [None]
    runs = root / call.option("paths.runs", "runs")
    assert f"{table}: all {len(rows) * len(folds)} runs are done" in done.out
    for row in rows:
        for fold in folds:
            scored(runs / table / row / "lesion" / ("seed0" if fold is None else f"seed0-fold{fold}"))
    if table != "demo":  # its table is printed by a command of its own
        tabulated(root, table, rows)


def tabulated(root, table, rows, folder="results"):
    """The table has a score of each row, and stands in each of its forms."""
    results = root / "experiments" / table / folder
    with open(results / "table.csv", newline="") as stream:
        shown = "validation" if table == "recipe" else "test"
        lines = [line for line in csv.DictReader(stream) if (line["set"], line["structure"]) == (shown, "lesion")]
    scores = {line["method"]: line for line in lines if line["method"] in rows}
    assert set(scores) == set(rows)
    assert all(int(line["dice_n"]) >= 1 and 0 <= float(line["dice_mean"]) <= 1 for line in scores.values())
    assert all((results / name).stat().st_size for name in ("table.md", "report.html", "statistics.json"))


def reported(call, done, root):
    table = call.option("table")
    runs = root / call.option("paths.runs", "runs") / table
    tabulated(root, table, [path.name for path in runs.iterdir()], call.option("results", "results"))


def predicted(call, done, root):
    """A mask for each structure of each scan on the scan's grid, and the table of all of them."""
    output, source = root / call.option("output"), root / call.option("input")
    scans = sorted(source.iterdir()) if source.is_dir() else [source]
    runs = call.option("run").strip("[]").split(",")
    with open(output / "quantities.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(scans)
    for scan in scans:
        image = sitk.ReadImage([str(file) for file in sorted(scan.iterdir())] if scan.is_dir() else str(scan))
        for run in runs:
            structure = run.split("/")[-2]
            mask = sitk.ReadImage(str(output / f"{scan.name.split('.')[0]}_{structure}.nii.gz"))
            assert mask.GetSize() == image.GetSize()
            assert mask.GetSpacing() == pytest.approx(image.GetSpacing())
            assert mask.GetOrigin() == pytest.approx(image.GetOrigin())


def evaluated(call, done, root):
    """A row for every case of foreign data; for the run's own, those of its test sets. Or what was chosen for a run."""
    if call.option("choose_postprocessing"):
        (file,) = done.called("postprocessing.json")
        assert read_json(root / file)["cases"] and "mean Dice of" in done.out
        return
    (file,) = done.called("cases.csv")
    with open(root / file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows and all(float(row["dice"]) >= 0 for row in rows)
    if call.option("data"):
        assert {row["case"] for row in rows} == listed(root / call.option("data.root"), call.option("data"))
    if call.option("predictions"):
        assert {float(row["dice"]) for row in rows} == {1.0}  # the masks are copies of the reference
    assert done.called("metrics.json")


def listed(root, dataset):
    """The annotated cases of a stand-in."""
    masks = {"folder": "lesions", "covid19_ct_seg": "Infection_Mask", "mosmed": "masks"}[dataset]
    names = [path.name.split(".")[0] for path in (root / masks).iterdir() if not path.name.startswith(".")]
    return {name.removesuffix("_mask") for name in names}


def looked(call, done, root):
    """Each run that is there is named with what it is doing."""
    runs = sorted((root / "runs").glob("*/*/*/*/status.json"))
    wanted = [path.parent.relative_to(root / "runs").as_posix() for path in runs]
    table = call.option("name")
    assert all(name in done.out for name in wanted if table in (None, name.split("/")[0]))
    assert runs or "no runs below runs" in done.out


def measured(call, done, root):
    """The numbers that are committed; of what is timed, the tables of the suite."""
    if call.suite == "statistics":
        (file,) = done.called("statistics.md")
        assert (root / file).read_text() in done.out
        assert read_json((root / file).with_suffix(".json"))["trials"] == 2
        return
    if call.suite == "versus":  # what ours and a peer scored on the held-out patients of a fold
        (file,) = done.called("versus.md")
        assert (root / file).read_text() in done.out + "\n" and "covidseg, its recipe" in done.out
        lines = {one["contender"]: one for one in read_json((root / file).with_suffix(".json"))["lines"]}
        assert all(lines[name]["cases"] for name in ("ours", "dynunet"))
        return
    if call.suite != "networks":
        (file,) = done.called(f"{call.suite}.md")
        title = "Ceilings" if call.suite == "gpu" else f"{call.suite}: "
        assert f"\n### {title}" in (root / file).read_text() and f"\n### {title}" in done.out
        return
    (file,) = done.called("networks.md")
    committed = (ROOT / "experiments" / "networks.md").read_text()
    assert (root / file).read_text() == committed and committed.strip() == done.out.strip()
    assert file.parent.as_posix() == call.option("output", "runs/benchmark")


def based(call, done, root):
    scored(root / f"runs/{call.option('name')}/threshold/lesion/seed0")


OUTCOMES = {
    "help": helped, "shell": went_well, "prepare": checked, "train": trained, "report": reported, "status": looked,
    "predict": predicted, "evaluate": evaluated, "benchmark": measured, "baseline": based,
}  # fmt: skip
