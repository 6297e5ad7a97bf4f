"""The page in a browser: what fits, what can be reached, what axe finds. In Chromium, without a window.

COVIDSEG_INSTALL_CHROMIUM=1 lets the tests install Debian's package; axe-core is fetched from a wheel that holds it.
"""

import re
import subprocess
from html import escape

import numpy as np
import pytest

from browser import answer, without_policy
from covidseg import report
from covidseg.evaluation.comparison import RowScores, compare_all
from covidseg.report.table import Block, blocks
from covidseg.report.verdict import verdict

HOSTILE = "<img src=x onerror=alert(1)>"
QUIET = ("--headless", "--no-sandbox", "--disable-gpu")
WIDTHS = (360, 768, 1152)
MEASURE = """
const frame = document.querySelector('iframe');
frame.addEventListener('load', () => {
  const page = frame.contentDocument, root = page.documentElement, found = {overflow: root.scrollWidth - WIDTH};
  const regions = [...page.querySelectorAll('.scroll')];
  found.cut = regions.filter(r => r.scrollWidth > r.clientWidth + 1).map(r => r.getAttribute('aria-label'));
  found.unnamed = regions.filter(r => r.tabIndex !== 0 || !r.getAttribute('aria-label')).length;
  found.hidden = regions.filter(r => {
    r.scrollLeft = 400;
    const name = r.querySelector('tbody th');
    return name.getBoundingClientRect().left < r.getBoundingClientRect().left - 1;
  }).length;
  found.links = [...page.querySelectorAll('nav a')].filter(a => !page.querySelector(a.getAttribute('href'))).length;
  found.first = page.querySelector('.first table').getBoundingClientRect().top;
  found.headings = page.querySelectorAll('h2').length;
  document.querySelector('pre').textContent = JSON.stringify(found);
});
frame.srcdoc = document.querySelector('template').innerHTML;
"""


@pytest.fixture
def page(write_run, tmp_path):
    """A table with everything on it: both structures, two sets, seeds, contours, gaps, a hostile name."""
    for error, row in enumerate(("unet4", "cab", "fv", "full", "my_row")):
        for task in ("lesion", "lung"):
            for seed in (0, 1):
                write_run("table2", row, task, seed=seed, error=error, sets=("test", "external"), slices=True, cases=7)
    (tmp_path / "runs" / "table2" / "fv" / "lesion" / "seed2").mkdir()
    results = report.collect(tmp_path / "runs" / "table2")
    results.titles["my_row"] = HOSTILE
    report.write(results, tmp_path / "out")
    return tmp_path / "out" / "report.html"


def test_the_page_says_nothing_and_asks_for_nothing(chromium, page):
    text, said = chromium(page)
    assert said == []
    assert text.count("<script") == 1, "its own, that sorts tables"
    assert HOSTILE not in text and escape(HOSTILE) in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)


SORT = """
const table = document.querySelector('.first table'), told = [];
const shown = () => [...table.tBodies[0].rows].map(row => [row.cells[0].textContent, row.cells[at].textContent]);
const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === 'lesion Dice');
const head = table.tHead.rows[0].cells[at];
for (let n = 0; n < 4; n++) {
  told.push([head.getAttribute('aria-sort'), shown()]);
  head.querySelector('button').click();
}
document.body.innerHTML = '<pre id="answer"></pre>';
document.querySelector('pre').textContent = JSON.stringify(told);
"""


def test_a_click_on_a_head_sorts_and_a_third_one_restores(chromium, page, tmp_path):
    text = without_policy(page).replace("</body>", f"<script>{SORT}</script></body>")
    (tmp_path / "sort.html").write_text(text, encoding="utf-8")
    document, said = chromium(tmp_path / "sort.html")
    before, up, down, again = answer(document)
    assert said == [] and [one[0] for one in (before, up, down, again)] == [None, "ascending", "descending", None]
    dice = [[float(cell.split(" ")[0]) for _, cell in rows if cell[0].isdigit()] for _, rows in (before, up, down)]
    assert dice[0] != sorted(dice[0]), "there is something to sort"
    assert dice[1] == sorted(dice[0]) and dice[2] == sorted(dice[0], reverse=True)
    assert again[1] == before[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_scrolls_where_it_does_not(chromium, page, width, tmp_path):
    inside = without_policy(page).replace("</template>", "")
    script = MEASURE.replace("WIDTH", str(width))
    frame = f'<iframe style="border:0" width="{width}" height="900"></iframe>'
    shell = f'<template>{inside}</template>{frame}<pre id="answer"></pre><script>{script}</script>'
    (tmp_path / "shell.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{shell}</body>')
    found = answer(chromium(tmp_path / "shell.html", "--window-size=1400,1000")[0])
    assert found["overflow"] <= 0 and found["unnamed"] == found["hidden"] == found["links"] == 0
    assert found["headings"] > 15
    if width == max(WIDTHS):
        assert not [name for name in found["cut"] if name.startswith(("Table II", "Differences", "Cases"))]
    else:
        assert found["cut"]  # a region of its own scrolls, with the method's name in sight, and not the page


@pytest.mark.parametrize("theme", [(), ("--force-dark-mode",)], ids=["light", "dark"])
def test_axe_finds_nothing(chromium, axe, page, theme, tmp_path):
    run = """
    axe.run().then(found => { const told = found.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html]);
      const dark = matchMedia('(prefers-color-scheme: dark)').matches;
      document.body.innerHTML = '<pre id="answer"></pre>';
      document.querySelector('pre').textContent = JSON.stringify({told, dark, passed: found.passes.length}); });
    """
    text = without_policy(page).replace("</body>", f"<script>{axe}</script><script>{run}</script></body>")
    (tmp_path / "axe.html").write_text(text, encoding="utf-8")
    found = answer(chromium(tmp_path / "axe.html", *theme)[0])
    assert found["told"] == []
    assert found["dark"] == bool(theme) and found["passed"] > 10


def test_it_prints_whole(chromium, page, tmp_path):
    pdf = tmp_path / "page.pdf"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'print'}"]
    done = subprocess.run(
        ["chromium", *quiet, f"--print-to-pdf={pdf}", page.as_uri()], capture_output=True, timeout=120
    )
    assert done.returncode == 0 and pdf.stat().st_size > 50_000


def block_of(gains, metric="dice", higher_is_better=True, seeds=1, patients=15):
    """A block of comparisons with row "base", each of the others better by its gain."""
    draw = np.random.default_rng(0)
    base = draw.uniform(0.5, 0.7, patients)
    rows = {
        name: RowScores({seed: dict(enumerate(base + gain + draw.normal(0, 0.01, patients))) for seed in range(seeds)})
        for name, gain in {"base": 0.0, **gains}.items()
    }
    pairs, patient_of = [(name, "base") for name in gains], dict(enumerate(range(patients)))
    return Block(
        "test", "lesion", (), tuple(compare_all({metric: rows}, pairs, patient_of, {metric: higher_is_better}))
    )


def told(block):
    titles = {"base": "UNet4", "up": "Better", "down": "Worse", "same": "Same"}
    return verdict(block, titles).notes


def test_the_verdict_names_what_differs_and_how_surely():
    (said,) = told(block_of({"up": 0.1, "down": -0.1, "same": 0.0}, seeds=3))
    assert said.startswith("In Dice better than UNet4: Better +0.")
    assert "In Dice worse than UNet4: Worse -0." in said and "Same" not in said
    assert "p < 0.001" in said and "95 % interval" in said
    assert "3 comparisons, on 15 cases of 15 patients, with 3 seeds of each row." in said
    assert "to be found four times in five" in said


def test_the_verdict_knows_that_less_may_be_better():
    (said,) = told(block_of({"up": 0.1, "down": -0.1}, "hd95_mm", higher_is_better=False, seeds=2))
    assert "In HD95 better than UNet4: Worse -0.1 mm" in said and "worse than UNet4: Better +0.1 mm" in said


def test_the_verdict_of_no_difference_says_what_could_not_be_seen():
    said, one_seed = told(block_of({"same": 0.0}))
    assert said.startswith("No row differs from UNet4 in Dice beyond chance. The largest difference: Same")
    assert "with 1 seed of each row" in said and one_seed.startswith("One seed each")
    (said, _) = told(block_of({"same": 0.0, "up": 0.2}, patients=6))
    assert "No test can be significant with 6 patients and 2 comparisons" in said


def test_the_verdict_of_rows_whose_seeds_vary_too_much():
    """Two seeds far apart: no Dice is different enough to be seen."""
    cases = dict.fromkeys(range(12), 0.5)
    rows = {name: RowScores({0: cases, 1: dict.fromkeys(cases, low)}) for name, low in (("base", 0.1), ("same", 0.0))}
    compared = compare_all({"dice": rows}, [("same", "base")], {case: case for case in cases})
    (said,) = told(Block("test", "lesion", (), tuple(compared)))
    assert "No difference that Dice can have would be found four times in five" in said


def test_the_verdict_of_nothing_to_compare(write_run, tmp_path):
    write_run("table2", "fv")
    (block,) = blocks(report.collect(tmp_path / "runs" / "table2"))
    assert "Nothing can be compared yet" in verdict(block, {"fv": "FV"}).notes[0]
    write_run("table2", "unet4", error=1)
    (block,) = blocks(report.collect(tmp_path / "runs" / "table2"))
    (note, *_) = verdict(block, {line.method: line.title for line in block.lines}).notes
    assert "No row differs from UNet4 in Dice beyond chance." in note or "than UNet4" in note
