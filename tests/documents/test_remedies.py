"""What an error message says is to be done, is done, and then the command works.

The remedy is read out of the line `error: ... -> remedy` as a reader takes it: the suggested word in place of the
mistyped one, an option that is named, the first of several choices, a command. Only what a reader has to supply
("data.root=...") is supplied here.
"""

import re
import shutil

import pytest

from covidseg.sweep import launch
from reading import ONE_RUN

FOLDER = ["data=folder", "data.root=my_scans"]
CT_SEG = ["data=covid19_ct_seg", "data.root=COVID-19-CT-Seg"]
RUN = "run=runs/mine/unet3d/lesion/seed0"
OPTION = re.compile(r"'?((?:\+)?[a-z][\w./]*=(?:\[[^\]]*\]|[^\s,;'()]*))")

slow = pytest.mark.slow


def remedied(options, err, supplied):
    """The command's options after a reader has done what the line says."""
    line = err.strip().splitlines()[-1]
    what, remedy = line.removeprefix("error: ").partition(": ")[0], line.partition(" -> ")[2]
    assert remedy, line
    key = what.partition("=")[0]
    if meant := re.match(r"did you mean ([\w./]+)\?", remedy):
        if "=" in what:
            return [f"{key}={meant[1]}" if option == what else option for option in options]
        return [option.replace(f"{key}=", f"{meant[1]}=") if _key(option) == key else option for option in options]
    if "leave it out" in remedy:
        return [option for option in options if _key(option) != key]
    if "seed<k> folder" in remedy:
        return [f"{option}/seed0" if _key(option) == key else option for option in options]
    named = [option.rstrip(".") for option in OPTION.findall(remedy)] or [f"{key}={_value(what, remedy)}"]
    for option in named if " and " in remedy else named[:1]:
        if option.endswith("="):
            option += supplied[_key(option)]
        options = [*(given for given in options if _key(given) != _key(option)), option]
    return options


def _value(what, remedy):
    """The first value that the line offers: `use [16,16,16]`, `one of a, b`, `a, b or c`, `the sites are A, B`."""
    if offered := re.search(r"\[[^\]]+\]", remedy):
        return offered[0]
    words = re.sub(r"^(one of|the sites are|tables with runs:|set it to|use) ", "", remedy)
    first = re.split(", | or ", words)[0]
    return f"[{first}]" if "=[" in what else first


def _key(option):
    return option.lstrip("+").partition("=")[0]


@pytest.fixture
def follow(command):
    """Run the command, which is wrong, and do what its line `says`: after so many lines it works -> its output"""

    def run(program, /, *options, says, lines=1, **supplied):
        options = list(options)
        supplied = {key.replace("__", "."): value for key, value in supplied.items()}
        status, out, err = command(program, *options)
        assert says in err, err or out
        for _ in range(lines):
            assert status == 2 and err.startswith("error: "), err or out
            options = remedied(options, err, supplied)
            status, out, err = command(program, *options)
            if status == 0:
                return out
        raise AssertionError(f"after {options}: {err}")

    return run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["data=foldr", "data.root=my_scans"], "did you mean folder?"),
        (["data.rot=my_scans"], "did you mean data.root?"),
        (["data.root=my_scans", "chek_only=true"], "did you mean check_only?"),
        (["data.root=my_scans", "check_only=yes"], "check_only=true"),
        ([], "data.root=..."),
        (["data=folder"], "data.root=..."),
        (["data.root=my_scans", "data.splits.external_sites=[Paris]"], "the sites are Bonn"),
        (["data.root=my_scans", "data.spacing_zyx=3"], "[2.5,1.5,1.5]"),
    ],
)
def test_prepare(follow, options, says):
    checking = [] if "check" in " ".join(options) else ["check_only=true"]
    out = follow("prepare", *options, *checking, "data.workers=0", says=says, data__root="my_scans")
    assert "10 cases" in out


@pytest.mark.parametrize("data", ["folder", "mosmed", "nnunet", "covid19_20", "covid19_ct_seg"])
def test_the_folder_of_another_data_set(command, data):
    """Each converter says which folder it misses, by a name that the message of conf/data explains."""
    root = "new_scans" if data == "folder" else "my_scans"
    status, _, err = command("prepare", f"data={data}", f"data.root={root}")
    assert status == 2 and f"data.root={root}: holds no folder " in err


@slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([*FOLDER, "model=unet3"], "did you mean unet3d?"),
        ([*FOLDER, "model.widht=2"], "did you mean model.width?"),
        ([*FOLDER, "max_steps=2"], "did you mean training.max_steps?"),
        ([*FOLDER, "training.patch_size_zyx=[15,16,16]"], "use [16,16,16]"),
        ([*FOLDER, "training.evaluate=first"], "one of last"),
        ([*FOLDER, "optimizer=lion"], "one of adam"),
        (["data=folder"], "data.root=..."),
        ([*FOLDER, "fold=9"], "fold="),
        ([*FOLDER, "resume=require"], "resume=auto"),
        (["data=mosmed", "data.root=MosMedData", "task=lung"], "task=lesion"),
        (["data=mosmed", "data.root=MosMedData", "task=joint"], "task=lesion"),
        (CT_SEG, "fold=0"),
        ([*CT_SEG, "fold=7"], "fold=0"),
        ([*FOLDER, "data.splits.validation_fraction=0", "training.evaluate=best"], "last"),
    ],
)
def test_train(follow, tmp_path, options, says):
    given = {option.partition("=")[0] for option in options}
    small = [option for option in ONE_RUN if option.partition("=")[0] not in given]
    follow("train", *small, *options, "name=mine", says=says, data__root="my_scans")
    assert len(list(tmp_path.glob("runs/mine/*/*/*/metrics.json"))) == 1


@pytest.fixture
def planned(monkeypatch):
    """Names of the runs that the sweeps of a test would make; they are not made."""
    names = []
    monkeypatch.setattr(launch, "launch", lambda rows, *_, **__: names.extend(row.name for row in rows))
    return names


def test_several_values_without_m(command, planned):
    """`-m`, wherever it stands."""
    status, _, err = command("train", *ONE_RUN, *FOLDER, "seed=0,1")
    assert status == 2 and "seed=0,1: are several values -> -m runs each of them" in err
    for place in (0, 3, len(ONE_RUN)):
        options = [*ONE_RUN, *FOLDER, "seed=0,1"]
        options.insert(place, "-m")
        assert command("train", *options)[0] == 0
    assert [name.rsplit("/", 1)[1] for name in planned] == ["seed0", "seed1"] * 3


def test_sweeps(follow, planned):
    follow("train", "sweep=ablaton", "task=lung", says="did you mean ablation?")
    assert len(planned) == len(set(planned)) == 10 * 3
    planned.clear()
    options = ["-m", *FOLDER, "row=mine", "optimizer.lr=1e-3,1e-4"]
    follow("train", *options, says="'row=mine-${optimizer.lr}'")
    assert planned == ["train/mine-0.001/lesion/seed0", "train/mine-0.0001/lesion/seed0"]


def test_a_folder_that_was_not_prepared(command):
    """The remedy names src/prepare.py, which prints the folder."""
    status, _, err = command("train", *ONE_RUN, "data.prepared=nowhere", "fold=0")
    assert status == 2 and "make one with src/prepare.py" in err
    _, out, _ = command("prepare", *FOLDER, "data.spacing_zyx=[9,9,9]", "data.workers=0")
    prepared = re.search(r"cases in (\S+):", out)[1]
    assert command("train", *ONE_RUN, f"data.prepared={prepared}")[0] == 0


def test_a_list_and_a_text_where_several_values_were_meant_as_one(command):
    status, _, err = command("train", *ONE_RUN, *FOLDER, "data.splits.external_sites=Bonn,Essen")
    assert status == 2 and "a list stands in brackets" in err
    status, _, err = command("train", *ONE_RUN, *FOLDER, "data.splits.external_sites=[Essen]", "data.splits.folds=0")
    assert status == 0, err


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """Where the first test that needs a trained run leaves it for the others."""
    return tmp_path_factory.mktemp("first") / "run"


@pytest.fixture
def trained(command, first_run, tmp_path):
    """A finished run on `my_scans` and the prepared cases it was trained on."""
    if not first_run.exists():
        status, _, err = command("train", *ONE_RUN, *FOLDER, "name=mine")
        assert status == 0, err
        for name in ("runs", "data"):
            shutil.copytree(tmp_path / name, first_run / name)
    shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)


@slow
def test_a_finished_run(trained, follow):
    options = [option for option in ONE_RUN if "max_steps" not in option]
    follow("train", *options, *FOLDER, "name=mine", "training.max_steps=3", says="another name=", name="longer")


@slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "run=..."),
        (["run=runs/mine/unet3d/lesion"], "seed<k> folder"),
        ([RUN, "checkpoint=frist"], "auto"),
        ([RUN, "sets=tests"], "train, validation"),
        ([RUN, "sets=external"], "sets="),
        ([RUN, "task=lesion"], "leave it out"),
        ([RUN, "data=folder"], "data.root=..."),
        ([RUN, "device=gpu"], "auto"),
        ([RUN, "overwrite=yes"], "overwrite=true"),
        ([RUN, "output=my_scans/x"], "output=..."),
        ([RUN, f"output={RUN[4:]}"], "output=..."),
        ([RUN, "output=theirs"], "output=..."),
    ],
)
def test_evaluate(trained, follow, tmp_path, options, says):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "cases.csv").write_text("case\n")
    supplied = {"run": RUN[4:], "sets": "test", "data__root": "my_scans", "output": "scores"}
    assert " cases, " in follow("evaluate", *options, says=says, **supplied)


def test_masks_are_scored_against_something(follow):
    supplied = {"task": "lesion", "data": "folder", "data__root": "my_scans"}
    out = follow("evaluate", "predictions=masks", says="task=... and data=...", lines=3, **supplied)
    assert " cases, " in out


@slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "run=..."),
        ([RUN], "input=..."),
        ([RUN, "input=scan.nii.gz"], "output=..."),
        (["run=runs/mine/unet3d/lesion", "input=scan.nii.gz"], "seed<k> folder"),
        ([RUN, "input=scan.nii.gz", "extension=nii.gz"], "one of .nii.gz"),
        ([RUN, "input=scan.nii.gz", "checkpoint=frist"], "auto"),
        ([RUN, "input=around"], "reading.recursive=true"),
        ([RUN, "input=scan.nii.gz", "overwrit=true"], "did you mean overwrite?"),
        ([RUN, "input=scan.nii.gz", "output=full"], "overwrite=true"),
    ],
)
def test_predict(trained, follow, tmp_path, options, says):
    shutil.copytree(tmp_path / "new_scans", tmp_path / "around" / "inner")
    (tmp_path / "full").mkdir()
    shutil.copy(next((tmp_path / "masks").iterdir()), tmp_path / "full" / "scan_lesion.nii.gz")
    supplied = {"run": RUN[4:], "input": "scan.nii.gz", "output": "segmented"}
    output = [] if says == "output=..." or "output=" in " ".join(options) else ["output=segmented"]
    lines = 1 if options else 2  # neither run nor input
    assert "scans segmented" in follow("predict", *options, *output, says=says, lines=lines, **supplied)


@slow
def test_report_and_status(trained, follow, command):
    assert "report.html" in follow("report", says="table=...", table="mine")
    assert "report.html" in follow("report", "table=min", says="tables with runs: mine")
    assert "mine/unet3d" in follow("status", "nam=mine", says="did you mean name?")
    status, out, _ = command("status", "name=yours")
    assert status == 0 and "no runs below runs/yours" in out


@pytest.mark.parametrize(("options", "says"), [([], "suite=..."), (["suite=network"], "did you mean networks?")])
def test_benchmark(follow, monkeypatch, options, says):
    from covidseg.benchmark import networks

    monkeypatch.setattr(networks, "run", lambda cfg: print(cfg.suite))
    assert follow("benchmark", *options, says=says, suite="networks") == "networks\n"


def test_baseline(follow):
    options = ["name=mine", "data.workers=0", "data.spacing_zyx=[9,9,9]"]
    assert "is called lesion" in follow("baseline", *options, *FOLDER, "task=joint", says="task=lesion")
    assert "is called lesion" in follow("baseline", *options, *CT_SEG, says="fold=0")
