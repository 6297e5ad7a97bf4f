"""What is said of the cases: comparisons, strata, volumes, failures, how it was made. On runs with drawn scores."""

import csv
import math

import pytest

from covidseg import report
from covidseg.evaluation.calibration import Reliability
from covidseg.evaluation.results import COLUMNS
from covidseg.report import findings
from covidseg.report.analysis import ALL_SITES, failures, strata, volumes
from covidseg.report.cells import interval, number, spread
from covidseg.report.methods import methods, reproduce
from covidseg.report.request import Request
from covidseg.report.sections import sections
from covidseg.report.table import blocks
from covidseg.system.files import read_json, write_csv, write_json


@pytest.fixture
def collect(tmp_path):
    return lambda table="table2": report.collect(tmp_path / "runs" / table)


def texts(results):
    return {section.title: section for section in sections(results, blocks(results))}


def change(run, **columns):
    """Set columns of a run's cases.csv, each from a function of the line."""
    with open(run / "cases.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    for line in lines:
        line |= {name: make(line) for name, make in columns.items()}
    write_csv(run / "cases.csv", lines, COLUMNS)


def case(name, dice, reference_ml=100.0, prediction_ml=90.0, site="A", tp=5, fp=1, fn=1, **scores):
    shares = {"sensitivity": tp / (tp + fn) if tp + fn else None, "precision": tp / (tp + fp) if tp + fp else None}
    found = {"case": name, "patient": name, "site": site, "dice": dice, "tp": tp, "fp": fp, "fn": fn} | shares
    return found | {"reference_ml": reference_ml, "prediction_ml": prediction_ml} | scores


def test_one_seed_is_said_to_compare_networks_and_several_methods(write_run, collect):
    for row in ("unet4", "fv"):
        write_run("table2", row, error=1 + (row == "fv"))
    (block,) = blocks(collect())
    notes = findings.comparison_notes(block.comparisons)
    assert findings.ONE_SEED in notes and "sign flipped or not (the smallest possible p: 0.031)" in notes[-1]
    for row in ("unet4", "fv"):
        write_run("table2", row, seed=1, error=1 + (row == "fv"))
    (block,) = blocks(collect())
    assert not any("One seed" in note or "smallest" in note for note in findings.comparison_notes(block.comparisons))
    assert block.comparisons[0].of == "methods"


def test_a_threshold_has_no_seeds_to_be_asked_for(write_run, collect):
    for seed in (0, 1):
        write_run("demo", "unet4", seed=seed, error=2)
    threshold = write_run("demo", "threshold")
    write_json(threshold / "metrics.json", read_json(threshold / "metrics.json") | {"threshold": {"low_hu": -700}})
    (block,) = blocks(collect("demo"))
    assert [(one.row, one.baseline, one.of, one.seeds) for one in block.comparisons] == [
        ("unet4", "threshold", "methods", (2, 1))
    ]


def test_it_is_said_when_no_test_can_be_significant(write_run, collect):
    for error, row in enumerate(("unet4", "cab", "fv", "full")):
        write_run("table2", row, error=error, cases=6)
    (block,) = blocks(collect())
    notes = findings.comparison_notes(block.comparisons)
    said = "No test can be significant with 6 patients and 3 comparisons: the smallest possible p is 0.031, 0.094 when"
    assert any(said in note for note in notes)
    shown = texts(collect())["Differences from UNet4: lesion, test set"]
    assert {row[list(shown.header).index("detectable")] for row in shown.rows} == {"–"}


def test_a_case_without_a_reference_is_compared_by_nobody(write_run, collect):
    """A run with a false alarm has a score for it, one without has none, and neither may lose the pair by that."""
    write_run("table2", "unet4", cases=8, empty=(1, 2))
    write_run("table2", "fv", cases=8, empty=(1, 2), silent=(1,), error=2)  # case 2: false alarms of both
    (block,) = blocks(collect())
    assert [one.n for one in block.comparisons] == [6]
    assert block.ranking is None and [line.metrics["dice"].n for line in block.lines] == [8, 7]


def test_a_metric_that_fails_says_so_beside_its_mean(write_run, collect):
    write_run("table2", "unet4", cases=6, silent=(2, 3))
    shown = texts(collect())["Every metric: lesion, test set"]
    rows = {row[0]: dict(zip(shown.header, row, strict=True)) for row in shown.rows}
    assert (rows["HD95, mm ↓"]["n"], rows["HD95, mm ↓"]["failed"]) == ("4", "2 of 6")
    assert (rows["Dice ↑"]["n"], rows["Dice ↑"]["failed"]) == ("6", "0 of 6")
    (block,) = blocks(collect())
    main = texts(collect())["Table II: blocks of COVID-SegNet, test set"]
    assert "[4]" in main.rows[0][list(main.header).index("lesion Prec.")]
    assert "[" not in main.rows[0][list(main.header).index("lesion Dice")]
    assert block.lines[0].failed["precision"] == 2


def test_few_patients_are_told_what_their_intervals_hold(write_run, collect):
    write_run("table2", "unet4", cases=9)
    notes = " ".join(texts(collect())["Every metric: lesion, test set"].notes)
    assert "those of 8 patients held the true mean in 90% of trials" in notes
    write_run("many", "unet4", cases=20)
    assert "promise too much" not in " ".join(texts(collect("many"))["Every metric: lesion, test set"].notes)


def test_every_two_methods_are_in_the_matrix_with_both_signs(write_run, collect):
    for error, row in enumerate(("unet4", "cab", "fv")):
        write_run("table2", row, error=error)
    shown = texts(collect())["Every two methods: lesion, test set"]
    assert shown.header == ["", "UNet4", "UNet4 + CAB", "UNet4 + FV"]
    for i in range(3):
        assert shown.rows[i][i + 1] == ""
        for j in range(i):
            assert float(shown.rows[i][j + 1].strip("*")) == -float(shown.rows[j][i + 1].strip("*"))


def test_strata_are_thirds_by_volume_and_the_sites():
    cases = [case(f"c{i}", i / 10, reference_ml=10.0 * (i + 1), site="AB"[i % 2]) for i in range(9)]
    cases.append(case("healthy", 0.0, reference_ml=0.0, tp=0, fn=0))
    found = {(one.name, one.method): one for one in strata({"a": cases, "nothing": []})}
    assert {name for name, _ in found} == {"up to 30 ml", "30 to 60 ml", "above 60 ml", "site A", "site B"}
    assert [found[name, "a"].summary.mean for name in ("up to 30 ml", "30 to 60 ml", "above 60 ml")] == pytest.approx(
        [0.1, 0.4, 0.7]
    )
    assert (found["site A", "a"].cases, found["site B", "a"].cases) == (6, 4)
    assert strata({"a": cases[:3]}) and all(one.name.startswith("site") for one in strata({"a": cases[:3]}))
    assert strata({"a": [case(f"c{i}", 0.5) for i in range(9)]}) == []  # volumes that are all the same have no thirds


def test_volumes_average_the_runs_of_a_case_before_they_are_compared():
    cases = [case("p", 0.5, 100.0, ml, site="A") for ml in (80.0, 120.0)] + [case("q", 0.5, 50.0, 70.0, site="B")]
    whole, *sites = volumes({"a": cases, "nothing": []})
    assert (whole.site, whole.agreement.n, whole.agreement.bias) == (ALL_SITES, 2, 10.0)
    assert [(one.site, one.agreement.bias) for one in sites] == [("A", 0.0), ("B", 20.0)]


def test_cases_of_unknown_volume_are_in_no_third_and_no_agreement():
    cases = [case(f"c{i}", i / 10, reference_ml=10.0 * (i + 1)) for i in range(9)]
    unknown = [case("old", 0.5, None, None)]
    assert strata({"a": cases + unknown}) == strata({"a": cases})
    assert volumes({"a": cases + unknown}) == volumes({"a": cases})
    assert volumes({"a": unknown}) == [] and failures({"a": unknown})[0].reference_ml == 0


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"tp": 0, "fp": 4, "fn": 0}, "false alarm"),
        ({"tp": 0, "fp": 0, "fn": 4}, "missed"),
        ({"tp": 0, "fp": 3, "fn": 4}, "missed, marked elsewhere"),
        ({"tp": 1, "fp": 0, "fn": 9}, "too little found"),
        ({"tp": 1, "fp": 9, "fn": 0}, "too much marked"),
        ({"tp": 1, "fp": 9, "fn": 9}, "too little found and too much marked"),
        ({"tp": 6, "fp": 4, "fn": 4}, "borders differ"),
    ],
)
def test_what_is_wrong_with_a_case(counts, reason):
    (found,) = failures({"a": [case("c", 0.1, **counts)]})
    assert (found.case, found.reason) == ("c", reason)


def test_the_worst_cases_come_first_and_runs_are_counted():
    cases = [case(f"c{i}", i / 10) for i in range(6)]
    cases += [case("c0", 0.2, tp=0, fp=0, fn=6), case("c0", 0.4)]
    found = failures({"a": cases, "nothing": []})
    assert [one.case for one in found] == ["c1", "c2", "c0"] or [one.case for one in found] == ["c1", "c0", "c2"]
    assert next(one for one in found if one.case == "c0").reason == "borders differ (2 of 3 runs)"
    assert failures({"a": [case("c", None)]}) == []


def test_calibrations_that_runs_kept_are_shown_and_a_damaged_one_is_left_out(write_run, collect, tmp_path):
    even = Reliability((0,) * 7 + (100,) + (0,) * 7, (0.0,) * 7 + (50.0,) + (0.0,) * 7, (0,) * 7 + (50,) + (0,) * 7)
    off = Reliability(even.voxels, even.probability, (0,) * 7 + (90,) + (0,) * 7)
    for row, one in (("unet4", even), ("fv", off)):
        for seed in (0, 1):
            run = write_run("table2", row, seed=seed)
            for case_id in ("tp00", "tp01"):
                one.save(run, case_id, "lesion")
    (run / "calibration" / "tp01_lesion.json").write_text("[]")
    one.save(run, "of_another_set", "lesion")
    one.save(tmp_path, "elsewhere", "lesion")
    outside = "../../../../../../calibration/elsewhere"
    assert (run / "calibration" / f"{outside}_lesion.json").is_file()
    change(run, case=lambda line: outside if line["case"] == "tp02" else line["case"])  # a table may name anything
    shown = texts(collect())["Calibration: lesion, test set"]
    assert [list(row) for row in shown.rows] == [["UNet4", "0.000", "2"], ["UNet4 + FV", "0.400", "2"]]
    report.write(collect(), tmp_path / "out", Request(pictures=False))
    assert (tmp_path / "out/figures/calibration-test-lesion.png").is_file()
    (test,) = read_json(tmp_path / "out/statistics.json")["sets"]
    assert [round(sum(one["reliability"]["voxels"])) for one in test["calibration"]] == [400, 300]


def test_sites_reach_the_report(write_run, collect):
    for row in ("unet4", "fv"):
        run = write_run("table2", row, cases=8, error=1 + (row == "fv"))
        change(run, site=lambda line: "AB"[int(line["case"][-1]) % 2])
    shown = texts(collect())
    assert {row[1] for row in shown["Volumes: lesion, test set"].rows} == {"all", "A", "B"}
    assert {"site A", "site B"} <= set(shown["By size and site: lesion, test set"].header)


def test_the_commands_of_a_sweep_are_one_and_of_other_runs_their_own(write_run, collect):
    for row in ("unet4", "fv"):
        for seed in (0, 1):
            run = write_run("table2", row, seed=seed)
            manifest = read_json(run / "manifest.json")
            options = [f"experiments/table2={row}", f"seed={seed}", "data=folder", "data.root=My scans"]
            manifest["attempts"][0]["command"] = ["train.py", *options]
            write_json(run / "manifest.json", manifest)
    told = reproduce(collect()).code.splitlines()
    assert told == [
        "git checkout 000000000000",
        "python src/train.py -m experiments/table2=unet4,fv seed=0,1 data=folder 'data.root=My scans'",
        "python src/report.py table=table2",
    ]
    manifest["attempts"][0]["command"] = ["train.py", "experiments/table2=fv", "seed=1", "optimizer.lr=0.1"]
    write_json(run / "manifest.json", manifest)
    told = reproduce(collect()).code.splitlines()
    assert len(told) == 6 and "python src/train.py experiments/table2=fv seed=1 optimizer.lr=0.1" in told


def test_runs_that_are_no_whole_grid_have_a_command_each(write_run, collect):
    """One sweep over all values would train what nobody trained."""
    for row, seed in (("unet4", 0), ("unet4", 1), ("fv", 0)):
        run = write_run("table2", row, seed=seed)
        manifest = read_json(run / "manifest.json")
        manifest["attempts"][0]["command"] = ["train.py", f"experiments/table2={row}", f"seed={seed}"]
        write_json(run / "manifest.json", manifest)
    told = reproduce(collect()).code.splitlines()[1:-1]
    assert sorted(told) == [
        "python src/train.py experiments/table2=fv seed=0",
        "python src/train.py experiments/table2=unet4 seed=0",
        "python src/train.py experiments/table2=unet4 seed=1",
    ]


def test_a_run_without_a_command_leaves_none(write_run, collect):
    write_run("table2", "unet4")
    assert reproduce(collect()).code.splitlines() == ["git checkout 000000000000", "python src/report.py table=table2"]


def test_the_methods_paragraph_names_what_was_tested(write_run, collect):
    for row in ("unet4", "fv"):
        write_run("table2", row, error=1 + (row == "fv"))
    results = collect()
    (paragraph,) = methods(results, blocks(results)).notes
    assert "sign-flip permutation" in paragraph and "mixed model" not in paragraph
    for row in ("unet4", "fv"):
        write_run("table2", row, seed=1, error=1 + (row == "fv"))
    results = collect()
    (paragraph,) = methods(results, blocks(results)).notes
    assert "2 seeds each by a mixed model" in paragraph and "sign-flip" not in paragraph
    assert "Data: phantom d0" in paragraph


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (number(None), "–"),
        (number(0.12345), "0.123"),
        (number(12.345, 1), "12.3"),
        (spread(None), "–"),
        (interval(None, 1.0), "–"),
        (interval(-0.1234, 0.2, signed=True), "-0.123 to +0.200"),
        (interval(3, 4, digits=0), "3 to 4"),
    ],
)
def test_how_numbers_are_written(written, text):
    assert written == text


def test_every_p_of_the_report_goes_through_one_formatter(write_run, collect, monkeypatch):
    from covidseg.evaluation import comparison

    for error, row in enumerate(("unet4", "cab")):
        write_run("table2", row, error=error)
    monkeypatch.setattr(comparison, "p_text", lambda p, smallest=0.0: "a p" if p is not None else math.nan)
    (block,) = blocks(collect())
    shown = texts(collect())["Differences from UNet4: lesion, test set"]
    columns = [position for position, name in enumerate(shown.header) if name.startswith("p")]
    assert {shown.rows[0][position] for position in columns if shown.header[position] != "patients"} == {"a p"}
    assert block.comparisons[0].p_holm_text == "a p"
