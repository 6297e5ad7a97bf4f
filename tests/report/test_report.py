import csv
import json
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO, StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from covidseg import report
from covidseg.config.paths import EXPERIMENTS
from covidseg.report import page
from covidseg.report.collect import paper_tables
from covidseg.report.page import Picture
from covidseg.report.section import Section
from covidseg.report.sections import main_sections, sections
from covidseg.report.table import blocks, paper_lawbreakers
from covidseg.runs.folder import RunFolder
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_text


@pytest.fixture
def rows_of(tmp_path):
    """Expected rows of a table: empty YAML files under experiments/."""

    def make(table, *rows):
        for row in rows:
            write_text(tmp_path / "experiments" / table / f"{row}.yaml", f"row: {row}\n")
        return tmp_path / "experiments"

    return make


def only_block(results):
    (found,) = blocks(results)
    return found


def test_whole_report_of_a_partial_table(write_run, write_unfinished, rows_of, tmp_path):
    experiments = rows_of("table2", "unet4", "cab", "fv", "full")
    for row, error in (("unet4", 3), ("cab", 2)):
        for task in ("lesion", "lung"):
            write_run("table2", row, task, error=error, slices=True)
    write_unfinished("table2", "fv", "failed", reason="the loss is not a number")
    screen = StringIO()
    folder = report.make_report(
        "table2", tmp_path / "runs", tmp_path / "out", [experiments], Console(file=screen, width=100)
    )
    assert folder == tmp_path / "out" / "table2" / "results"
    names = {"table.md", "table.tex", "table.csv", "cases.csv", "statistics.json", "report.html", "figures"}
    assert {path.name for path in folder.iterdir()} == names
    for text in ((folder / "table.md").read_text(), (folder / "report.html").read_text(), screen.getvalue()):
        assert "the loss is not a number" in text
        assert "fv/lesion/seed0" in text and "full/lung/seed0" in text and "missing" in text
    markdown = (folder / "table.md").read_text()
    table = markdown[markdown.index("## Table II") :].splitlines()[4:8]
    assert [line.split("|")[1].strip() for line in table] == [
        *("UNet4", "UNet4 + CAB", "UNet4 + FV", "UNet4 + FV + PASPP"),
    ]
    with open(folder / "table.csv", newline="") as stream:
        lines = {(line["method"], line["structure"]): line for line in csv.DictReader(stream)}
    assert lines["unet4", "lesion"]["state"] == "finished"
    assert lines["full", "lung"]["state"] == "missing" and lines["full", "lung"]["paper_dice"] == "0.987"
    assert {path.name for path in (folder / "figures").iterdir()} >= {
        "dice-test-lesion.png",
        "differences-test-lung.png",
        "contours-lesion-tp01.png",
        "curves-lesion.png",
        "surface.png",
    }
    statistics = read_json(folder / "statistics.json")
    assert {run["run"]: run["state"] for run in statistics["unfinished"]}["fv/lesion/seed0"] == "failed"
    assert statistics["dice_law"]["paper"] == [
        {"row": "unet4", "structure": "lung"},
        {"row": "cab", "structure": "lung"},
    ]


def test_report_again_is_the_same_and_drops_old_figures(write_run, rows_of, tmp_path):
    experiments = rows_of("table2", "unet4")
    write_run("table2", "unet4", slices=True)
    folder = report.make_report("table2", tmp_path / "runs", tmp_path / "out", [experiments], Console(file=StringIO()))
    first = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    (folder / "figures" / "contours-lesion-gone.png").write_bytes(b"old")
    report.make_report("table2", tmp_path / "runs", tmp_path / "out", [experiments], Console(file=StringIO()))
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == first
    assert not (folder / "figures" / "contours-lesion-gone.png").exists()


def test_the_papers_impossible_cells_are_those_it_is_known_for(tmp_path):
    known = {"table1": {"fcn", "unet3d", "vnet"}, "table2": {"unet4", "cab", "resaspp"}}
    for table, rows in known.items():
        results = report.collect(tmp_path / "runs" / table, [EXPERIMENTS])
        assert set(paper_lawbreakers(results)) == {(row, "lung") for row in rows}


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_every_shipped_row_has_a_title_and_the_baseline_is_one(table):
    rows = {file.stem for file in (EXPERIMENTS / table).glob("*.yaml")}
    known = paper_tables()[table]
    assert rows == set(known["rows"])
    assert known["baseline"] in rows


def test_seeds_are_averaged_within_cases_before_anything_else(write_run, tmp_path):
    for seed in (0, 1, 2):
        write_run("demo", "small", seed=seed, cases=4)
    line = only_block(report.collect(tmp_path / "runs" / "demo")).lines[0]
    assert (line.n, line.scored, line.runs, line.seeds) == (4, 12, 3, (0, 1, 2))
    assert line.metrics["dice"].n == 4
    scored = [case for run in report.collect(tmp_path / "runs" / "demo").finished for case in run.cases]
    assert line.metrics["dice"].mean == pytest.approx(sum(case["dice"] for case in scored) / 12)
    assert line.seed_sds["dice"] > 0


def test_folds_are_pooled(write_run, tmp_path):
    for fold in (0, 1):
        write_run("cv", "small", fold=fold, cases=3, prefix=f"f{fold}")
    line = only_block(report.collect(tmp_path / "runs" / "cv")).lines[0]
    assert (line.n, line.scored, line.runs) == (6, 6, 2)


def test_counts_of_empty_missed_and_false_alarms(write_run, tmp_path):
    write_run("demo", "small", error=0, cases=6, empty=(1, 2), silent=(2, 3))
    line = only_block(report.collect(tmp_path / "runs" / "demo")).lines[0]
    assert (line.empty_references, line.missed, line.false_alarms) == (2, 1, 1)
    assert line.metrics["dice"].n == 5  # both empty: undefined


def test_own_means_over_different_cases_are_flagged_as_such(write_run, tmp_path):
    write_run("demo", "small", error=0, cases=6, silent=(1, 2, 3))  # precision undefined where nothing was predicted
    results = report.collect(tmp_path / "runs" / "demo")
    line = only_block(results).lines[0]
    assert not line.law_same_cases
    path = tmp_path / "runs" / "demo" / "small" / "lesion" / "seed0" / "cases.csv"
    lines = list(csv.DictReader(path.open()))
    for row in lines:
        row["dice"], row["sensitivity"], row["precision"] = "0.99", "0.5", "0.6"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    results = report.collect(tmp_path / "runs" / "demo")
    line = only_block(results).lines[0]
    assert line.law and line.law_same_cases
    assert any("scores themselves are wrong" in note for note in main_sections(results, blocks(results))[0].notes)


def test_joint_runs_stand_beside_the_separate_ones(write_run, tmp_path):
    write_run("table2", "full", "lesion")
    write_run("table2", "full", "joint")
    lesion, lung = blocks(report.collect(tmp_path / "runs" / "table2"))
    assert [line.title for line in lesion.lines] == ["UNet4 + FV + PASPP", "UNet4 + FV + PASPP (joint)"]
    assert [line.title for line in lung.lines] == ["UNet4 + FV + PASPP (joint)"]


def test_a_report_is_made_without_torch(write_run, tmp_path):
    write_run("demo", "a")
    code = "import sys; from covidseg.cli.report import main; main(); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "table=demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments/demo/results/report.html").is_file()


def test_a_task_of_any_name_has_its_own_line_for_what_it_segments(write_run, tmp_path):
    write_run("demo", "a")
    write_run("demo", "a", task="covid", structures=("lesion",), slices=True)
    write_run("demo", "a", task="both", structures=("lesion", "lung"), error=3)
    results = report.collect(tmp_path / "runs/demo")
    lines = {block.structure: [(line.title, line.runs, line.n) for line in block.lines] for block in blocks(results)}
    assert lines == {
        "lesion": [("a", 1, 6), ("a (both)", 1, 6), ("a (covid)", 1, 6)],
        "lung": [("a (both)", 1, 6)],
    }
    report.write(results, tmp_path / "out")
    assert list((tmp_path / "out/figures").glob("contours-lesion-*.png"))


def test_external_set_is_a_table_of_its_own_without_the_papers_numbers(write_run, tmp_path):
    write_run("table2", "unet4", sets=("test", "external"))
    test, external = blocks(report.collect(tmp_path / "runs" / "table2"))
    assert (test.set, external.set) == ("test", "external")
    assert test.lines[0].paper and external.lines[0].paper is None


def test_different_data_are_called_out(write_run, tmp_path):
    write_run("demo", "a", data="d0")
    write_run("demo", "b", data="d1")
    results = report.collect(tmp_path / "runs" / "demo")
    assert any("must not be compared" in note for part in sections(results, blocks(results)) for note in part.notes)


def test_states_of_runs_that_have_no_results(write_run, write_unfinished, tmp_path):
    write_run("demo", "good")
    damaged = write_run("demo", "damaged")
    (damaged / "cases.csv").write_text("case\np1\n")
    write_unfinished("demo", "crashed", "running", step=3, max_steps=9)
    write_unfinished("demo", "torn", "finished", step=9, max_steps=9)  # killed between its last words and its results
    running = write_unfinished("demo", "running", "running", step=3, max_steps=9)
    (tmp_path / "runs" / "demo" / "started" / "lesion" / "seed0").mkdir(parents=True)
    with RunFolder(running).lock():
        runs = {run.row: run for run in report.collect(tmp_path / "runs" / "demo").runs}
    states = {row: run.state for row, run in runs.items()}
    assert states == {
        "good": "finished",
        "damaged": "damaged",
        "crashed": "killed",
        "torn": "killed",
        "running": "running",
        "started": "waiting",
    }
    assert runs["crashed"].reason == "step 3 of 9"


def test_table_of_nothing_but_missing_runs(rows_of, tmp_path):
    experiments = rows_of("table2", "unet4", "fv")
    screen = StringIO()
    report.make_report("table2", tmp_path / "runs", tmp_path / "out", [experiments], Console(file=screen, width=100))
    assert screen.getvalue().count("not started") == 4


def test_unknown_table_is_one_line(write_run, tmp_path):
    write_run("demo", "small")
    with pytest.raises(BadInput, match="tables with runs: demo"):
        report.collect(tmp_path / "runs" / "demmo", [tmp_path / "experiments"])


class Page(HTMLParser):
    """Tags, and the texts of all attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [f"{name}={value}" for name, value in attributes]

    def handle_data(self, data):
        self.texts.append(data)


EVIL = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", 'a" onerror="x', "Müller|x_y&z", "@SUM(A1)"]


def test_hostile_names_are_inert_in_every_format(write_run, tmp_path, rows_of):
    folder = write_run("demo", "small", cases=5)
    path = folder / "cases.csv"
    lines = list(csv.DictReader(path.open()))
    for line, name in zip(lines, EVIL, strict=True):
        line["case"] = line["patient"] = line["site"] = name
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    status = write_run("demo", "other").parent / "seed1"
    status.mkdir()
    RunFolder(status).write_status("failed", reason='<img src=x onerror="alert(1)"> | [red]x[/red] & $1 \\input{x}')
    screen = StringIO()
    out = report.make_report(
        "demo", tmp_path / "runs", tmp_path / "out", [rows_of("demo")], Console(file=screen, width=200)
    )
    page = Page((out / "report.html").read_text())
    assert page.tags.count("iframe") == page.tags.count("link") == 0
    assert page.tags.count("script") == 1, "the page's own, that sorts tables"
    assert not any(re.match(r"on\w+=", value) for value in page.values)
    sources = [value for value in page.values if value.startswith("src=")]
    assert sources and all(source.startswith("src=data:image/webp;base64,") for source in sources)
    assert any("default-src 'none'" in value for value in page.values)
    assert any("<img src=x" in text for text in page.texts)
    with open(out / "cases.csv", newline="") as stream:
        for row in csv.reader(stream):
            assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in row)
    assert "<img" not in (out / "table.md").read_text().replace("\\<img", "")
    assert "[red]x[/red]" in screen.getvalue()
    json.loads((out / "statistics.json").read_text())


def test_pictures_of_the_page_are_the_files_without_what_makes_them_large(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "scan.png")
    Image.fromarray(np.kron(noise[:4, :4], np.ones((40, 40, 1), np.uint8))).save(tmp_path / "plot.png")
    text = page.html("x", [], [Picture(name, tmp_path / f"{name}.png") for name in ("scan", "plot")])
    scan, plot = (Image.open(BytesIO(b64decode(found))) for found in re.findall(r"base64,([^\"]+)", text))
    assert np.array_equal(np.asarray(plot), np.asarray(Image.open(tmp_path / "plot.png")))
    assert scan.size == (400, 300) and len(text) < 0.9 * (tmp_path / "scan.png").stat().st_size


def test_every_text_of_the_page_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png")
    section = Section(evil, [evil], [[evil, evil]], [evil], evil)
    text = page.html(evil, [section], [Picture(evil, tmp_path / "x.png")])
    assert Page(text).tags.count("script") == 1 and text.count(page.sorting()) == 1
    assert text.count("&lt;script&gt;") == 12


def test_summary_rows_are_flat(write_run, tmp_path):
    write_run("demo", "small")
    (row,) = report.summary_rows(report.collect(tmp_path / "runs" / "demo"))
    assert row["method"] == "small" and isinstance(row["dice_mean"], float)
