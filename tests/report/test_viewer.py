"""The viewer: which cases it shows, what the page holds of them, and what a reader's clicks do in Chromium."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from browser import answer, without_policy
from covidseg import report
from covidseg.config.paths import CONF, ROOT
from covidseg.config.plain import as_dict, load_yaml
from covidseg.data.store import PreparedDataset
from covidseg.evaluation.results import COLUMNS
from covidseg.evaluation.structures import Task
from covidseg.report.request import Request
from covidseg.report.table import blocks
from covidseg.report.viewer import pages
from covidseg.report.viewer.gather import REFERENCE, chosen, gather
from covidseg.report.viewer.volume import HIGH_HU, LOW_HU, Shown, packed, script_data, thinned, thinned_spacing
from covidseg.runs import predictions
from covidseg.system.files import write_csv, write_json
from scored import case_row

HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = {"unet4": 1, "full": 0}  # row -> voxels that its masks are shifted by
# Chromium's clock jumps ahead while threads of its own unpack a scan: a pause has to take time that is real, too.
BUSY = """const pause = () => { let sum = 0; for (let n = 0; n < 2e7; n++) sum += Math.sqrt(n);
  return new Promise(go => setTimeout(go, sum ? 60 : 0)); };"""
ACT = """
const told = {};
BUSY
const shown = async name => { for (let n = 0; n < 200 && document.body.dataset.shown !== name; n++) await pause(); };
const pixels = canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
const sum = canvas => pixels(canvas).reduce((a, b) => a + b, 0);
const near = (canvas, [r, g, b]) => { const data = pixels(canvas); let n = 0;
  for (let i = 0; i < data.length; i += 4)
    n += Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 60;
  return n; };
const set = (name, value) => { const one = document.getElementById(name); one.value = value;
  one.dispatchEvent(new Event(one.type === 'range' ? 'input' : 'change')); };
(async () => { try {
  await shown('FIRST');
  const canvases = () => [...document.querySelectorAll('.panels canvas')];
  told.panels = [...document.querySelectorAll('.panels figcaption span')].map(one => one.textContent);
  told.first = document.getElementById('v-where').textContent;
  told.red = canvases().map(one => near(one, [255, 45, 32]));
  const before = canvases().map(sum);
  set('v-slice', 3);
  told.scrolled = canvases().every((one, at) => sum(one) !== before[at]);
  told.where = document.getElementById('v-where').textContent;
  const wheel = new WheelEvent('wheel', {deltaY: -1, cancelable: true});
  canvases()[1].dispatchEvent(wheel);
  told.wheel = [document.getElementById('v-slice').value, wheel.defaultPrevented];
  const lung = canvases().map(sum);
  set('v-window', 'mediastinum');
  told.darker = canvases().every((one, at) => sum(one) < lung[at]);
  document.querySelector('.panels button').click();
  told.worst = document.getElementById('v-slice').value;
  told.arrows = canvases().map(one => near(one, [255, 225, 77]) > 20);
  const surfaces = () => [...document.querySelectorAll('.surfaces canvas')];
  const still = surfaces().map(sum);
  set('v-turn', 90);
  told.turned = surfaces().every((one, at) => sum(one) !== still[at]);
  told.surfaces = [...document.querySelectorAll('.surfaces figcaption')].map(one => one.textContent);
  const dot = [...document.querySelectorAll('svg.dots circle')].find(one => one.dataset.case === 'c3');
  dot.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  await shown('c3');
  told.opened = document.getElementById('v-case').selectedOptions[0].text;
  told.marked = [...document.querySelectorAll('circle.open')].map(one => one.dataset.case);
  set('v-structure', 'lung');
  told.lung = near(canvases()[0], [255, 45, 32]);
  } catch (error) { told.error = String(error.stack); }
  document.body.innerHTML = '<pre id="answer"></pre>';
  document.querySelector('pre').textContent = JSON.stringify(told);
})();
"""


@pytest.fixture
def table(tmp_path, prepared):
    """A table of two rows and both structures, whose runs kept the masks of eight cases of a prepared data set."""
    data = PreparedDataset.open(prepared)
    for row, shift in ROWS.items():
        for name in ("lesion", "lung"):
            config = as_dict(load_yaml(CONF / "task" / f"{name}.yaml"))
            folder, task = tmp_path / "runs" / "table2" / row / name / "seed0", Task.from_config(config)
            lines = []
            for number, case in enumerate(data.cases.values()):
                reference = task.structures[name].in_reference(case.mask)
                classes = np.roll(reference, shift * (number + 1), axis=1).astype(np.uint8)
                predictions.keep(folder, case.id, classes, case.grid, task)
                lines.append(case_row(case.id, name, classes, reference.astype(np.uint8)))
            write_csv(folder / "cases.csv", lines, COLUMNS)
            write_json(folder / "manifest.json", {"data": {"name": data.name, "hash": data.hash}, "attempts": []})
            own = {"task": config, "data": {"prepared": str(prepared)}, "paths": {"data": "nowhere"}}
            write_json(folder / "config.yaml", own)  # JSON is YAML
            write_json(folder / "metrics.json", {"sets": {}, "parameters": 1, "multiply_adds": 1})
    return report.collect(tmp_path / "runs" / "table2")


@pytest.fixture
def page(table, tmp_path):
    table.titles["full"] = HOSTILE
    report.write(table, tmp_path / "out")
    return tmp_path / "out" / "report.html"


def unpacked(content, structure, name):
    shape = content["shape"]
    bits = zlib.decompress(base64.b64decode(content["masks"][structure][name]))
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=np.prod(shape)).reshape(shape).astype(bool)


def of_sheet(content):
    picture = Image.open(io.BytesIO(base64.b64decode(content["image"].partition(",")[2])))
    sheet = np.asarray(picture.convert("L"))
    depth, height, width = content["shape"]
    columns = content["columns"]
    return np.stack([
        sheet[z // columns * height :, z % columns * width :][:height, :width] for z in range(depth)
    ])  # fmt: skip


def test_a_packed_case_holds_its_masks_exactly_and_its_greys_nearly():
    z, y, x = np.mgrid[:20, :60, :70]
    image = (-1250 + 10 * x + 8 * y + 5 * z).astype(np.int16)
    mask = (z > 4) & (z < 12) & (y > 20) & (y < 40) & (x > 15) & (x < 50)
    found = packed(Shown("a", "test", "a", image, (2.5, 1.4, 1.4), {"lesion": {"m": mask}}))
    margin = round(12 / 1.4)
    box = (slice(0, 17), slice(21 - margin, 40 + margin), slice(16 - margin, 50 + margin))
    np.testing.assert_array_equal(unpacked(found, "lesion", "m"), mask[box])
    assert found["lung"] is None
    lung = (z > 2) & (z < 15) & (y > 10) & (y < 50)
    around = packed(Shown("a", "test", "a", image, (2.5, 1.4, 1.4), {"lesion": {"m": mask}}, lung=lung))
    bits = np.frombuffer(zlib.decompress(base64.b64decode(around["lung"])), np.uint8)
    assert np.unpackbits(bits, count=np.prod(around["shape"])).sum() == lung.sum(), "the lungs are whole in the box"
    hu = of_sheet(found).astype(float) / 255 * (HIGH_HU - LOW_HU) + LOW_HU
    expected = np.clip(image[box], LOW_HU, HIGH_HU)
    assert np.abs(hu - expected).mean() < 15 and found["spacing"] == [2.5, 1.4, 1.4]


def test_fine_and_long_scans_are_made_smaller_and_keep_their_size_in_mm():
    shape = (400, 300, 500)
    mask = np.zeros(shape, bool)
    mask[10:-10, 10:-10, 10:-10] = True
    found = packed(Shown("a", "test", "a", np.zeros(shape, np.int16), (1.0, 0.7, 0.7), {"lung": {"m": mask}}))
    assert found["shape"][0] <= 72 and max(found["shape"][1:]) <= 224
    for size, step, whole in zip(found["shape"], found["spacing"], (400.0, 210.0, 350.0), strict=True):
        assert size * step == pytest.approx(whole, rel=0.03)
    assert unpacked(found, "lung", "m").mean() == pytest.approx(mask.mean(), rel=0.05)


def test_thinning_before_packing_changes_nothing():
    """A table's masks are not all held as fine as they were predicted."""
    shape, spacing = (60, 200, 180), (1.0, 0.6, 0.7)
    rng = np.random.default_rng(0)
    image, mask = rng.integers(-1000, 200, shape).astype(np.int16), np.zeros(shape, bool)
    mask[10:50, 20:180, 30:150] = rng.random((40, 160, 120)) < 0.3
    whole = packed(Shown("a", "test", "a", image, spacing, {"lung": {"m": mask}}))
    thin = Shown(
        "a", "test", "a", thinned(image, spacing), thinned_spacing(spacing), {"lung": {"m": thinned(mask, spacing)}}
    )
    assert thin.image.size < image.size / 5 and thin.image.base is None
    assert packed(thin)["spacing"] == whole["spacing"]
    few = packed(thin)
    assert abs(unpacked(few, "lung", "m").sum() / unpacked(whole, "lung", "m").sum() - 1) < 0.05


def test_nothing_marked_shows_the_whole_scan():
    mask = np.zeros((6, 9, 9), bool)
    found = packed(Shown("a", "test", "a", np.zeros(mask.shape, np.int16), (3, 2, 2), {"lesion": {"m": mask}}))
    assert found["shape"] == [6, 9, 9]


def test_data_in_a_script_cannot_end_it():
    text = script_data({"label": HOSTILE})
    assert "<" not in text and json.loads(text)["label"] == HOSTILE


def test_cases_that_say_most_come_first_and_all_are_there(table):
    found = chosen(table, blocks(table))
    assert sorted(one.case for one in found) == [f"c{number}" for number in range(8)]
    why = {one.case: one.why for one in found}
    assert "best (lesion)" in why["c0"] and "worst (lesion)" in why["c6"] and "largest disagreement" in why["c6"]
    assert found[0].why.startswith("median (lesion)")
    assert [bool(one.why) for one in found] == sorted((bool(one.why) for one in found), reverse=True)


def test_gathered_are_the_masks_that_the_runs_kept(table, prepared, tmp_path):
    shown = {one.case: one for one in gather(table, tmp_path, chosen(table, blocks(table)))}
    case = PreparedDataset.open(prepared).cases["c2"]
    lesion = shown["c2"].masks["lesion"]
    assert list(lesion) == [REFERENCE, "unet4", "full"]
    np.testing.assert_array_equal(lesion[REFERENCE], case.mask == 2)
    np.testing.assert_array_equal(lesion["full"], case.mask == 2)
    np.testing.assert_array_equal(lesion["unet4"], np.roll(case.mask == 2, 3, axis=1))
    np.testing.assert_array_equal(shown["c2"].lung, case.mask > 0)
    assert shown["c2"].scores["lesion"]["full"] == 1.0 > shown["c2"].scores["lesion"]["unet4"]


def test_a_table_without_its_scans_or_masks_has_no_viewer(table, tmp_path):
    for row in ROWS:
        config = tmp_path / "runs" / "table2" / row / "lesion" / "seed0" / "config.yaml"
        own = json.loads(config.read_text())
        own["data"]["prepared"] = str(tmp_path / "nothing")
        for name in ("lesion", "lung"):
            write_json(config.parents[2] / name / "seed0" / "config.yaml", own)
    gone = report.collect(tmp_path / "runs" / "table2")
    report.write(gone, tmp_path / "out", data=tmp_path)
    assert "v-config" not in (tmp_path / "out" / "report.html").read_text()


def test_of_a_method_the_first_seed_that_kept_the_case_is_shown(table, prepared, tmp_path):
    runs = tmp_path / "runs/table2/unet4/lesion"
    shutil.copytree(runs / "seed0", runs / "seed1")
    data = PreparedDataset.open(prepared)
    task = Task.from_config(as_dict(load_yaml(CONF / "task" / "lesion.yaml")))
    for name in ("c2", "c3"):
        other = np.roll(data.cases[name].mask == 2, 9, axis=2).astype(np.uint8)
        predictions.keep(runs / "seed1", name, other, data.cases[name].grid, task)
    (runs / "seed0" / predictions.FOLDER / "c3.npz").unlink()
    again = report.collect(tmp_path / "runs" / "table2")
    shown = {one.case: one for one in gather(again, tmp_path, chosen(again, blocks(again)))}
    np.testing.assert_array_equal(shown["c2"].masks["lesion"]["unet4"], np.roll(data.cases["c2"].mask == 2, 3, axis=1))
    np.testing.assert_array_equal(shown["c3"].masks["lesion"]["unet4"], np.roll(data.cases["c3"].mask == 2, 9, axis=2))


def test_a_damaged_mask_costs_its_panel_and_not_the_report(table, tmp_path):
    (tmp_path / "runs/table2/full/lesion/seed0/predictions/c2.npz").write_bytes(b"PK nothing")
    shown = {one.case: one for one in gather(table, tmp_path, chosen(table, blocks(table)))}
    assert list(shown["c2"].masks["lesion"]) == [REFERENCE, "unet4"]
    assert list(shown["c3"].masks["lesion"]) == [REFERENCE, "unet4", "full"]


@pytest.mark.parametrize(("cases", "beside"), [("all", 5), ("chosen", 0), ("none", 0)])
def test_what_the_page_does_not_hold_lies_beside_it(table, tmp_path, monkeypatch, cases, beside):
    monkeypatch.setattr(pages, "IN_PAGE", 3)
    report.write(table, tmp_path / "out", Request(cases=cases))
    text = (tmp_path / "out" / "report.html").read_text()
    files = sorted(path.name for path in (tmp_path / "out" / "cases").glob("*.html"))
    assert len(files) == beside and len(re.findall(r'class="case"', text)) == (0 if cases == "none" else 3)
    links = {link for link in re.findall(r'data-page="(.*?)"', text)}
    assert links == {f"cases/{name}" for name in files}
    report.write(table, tmp_path / "out", Request(cases="none"))
    assert not list((tmp_path / "out" / "cases").glob("*.html")), "of an earlier report"


def test_no_voxel_is_on_a_page_without_pictures(table, tmp_path):
    report.write(table, tmp_path / "out", Request(pictures=False))
    assert "v-config" not in (tmp_path / "out" / "report.html").read_text()


def test_the_script_runs_under_the_pages_own_policy_and_asks_for_nothing(chromium, page):
    for _ in range(5):  # its clock may end before the scan is unpacked
        text, said = chromium(page)
        assert said == []
        if "data-shown=" in text:
            break
    assert "data-shown=" in text, "the policy let the viewer run"
    assert HOSTILE not in page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.read_text(encoding="utf-8"))


def test_a_reader_scrolls_windows_turns_and_opens_cases(chromium, page, table, prepared, tmp_path):
    first = chosen(table, blocks(table))[0].case
    script = f"<script>{ACT.replace('FIRST', first).replace('BUSY', BUSY)}</script></body>"
    (tmp_path / "act.html").write_text(without_policy(page).replace("</body>", script), encoding="utf-8")
    text, said = chromium(tmp_path / "act.html", "--window-size=1152,900")
    told = answer(text)
    assert [line for line in said if "willReadFrequently" not in line] == []  # the test's own reading
    assert "error" not in told, told
    assert [name.rpartition(" ")[0] for name in told["panels"]] == ["UNet4", HOSTILE]
    assert all(count > 30 for count in told["red"]), "the reference is drawn in every panel"
    mask = PreparedDataset.open(prepared).cases[first].mask
    largest = int(np.count_nonzero(mask == 2, axis=(1, 2)).argmax())
    assert told["first"].startswith(f"{largest + 1} of {len(mask)},")
    assert told["scrolled"] and told["where"] == f"4 of {len(mask)}, 18 mm"
    assert told["wheel"] == ["4", True] and told["darker"] and told["turned"]
    unet4 = np.roll(mask == 2, list(PreparedDataset.open(prepared).cases).index(first) + 1, axis=1)
    assert told["worst"] == str(int(np.count_nonzero(unet4 ^ (mask == 2), axis=(1, 2)).argmax()))
    assert told["arrows"] == [True, False], "the row without an error has none to point at"
    assert told["surfaces"] == ["reference", HOSTILE]
    assert told["opened"].startswith("c3, test set") and set(told["marked"]) == {"c3"}
    assert told["lung"] > 30


@pytest.mark.parametrize("theme", [(), ("--force-dark-mode",)], ids=["light", "dark"])
def test_axe_finds_nothing_in_the_viewer(chromium, axe, page, theme, tmp_path):
    run = """
    (async () => { BUSY
      for (let n = 0; n < 200 && !document.body.dataset.shown; n++) await pause();
      const found = await axe.run('#viewer');
      const told = found.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html]);
      document.body.innerHTML = '<pre id="answer"></pre>';
      document.querySelector('pre').textContent = JSON.stringify({told, passed: found.passes.length}); })();
    """.replace("BUSY", BUSY)
    text = without_policy(page).replace("</body>", f"<script>{axe}</script><script>{run}</script></body>")
    (tmp_path / "axe.html").write_text(text, encoding="utf-8")
    found = answer(chromium(tmp_path / "axe.html", *theme)[0])
    assert found["told"] == [] and found["passed"] > 10


@pytest.mark.parametrize("width", [360, 768, 1152])
def test_the_viewer_fits(chromium, page, width, tmp_path):
    ask = """
    const frame = document.querySelector('iframe');
    frame.addEventListener('load', async () => { const page = frame.contentDocument;
      BUSY
      for (let n = 0; n < 200 && !page.body.dataset.shown; n++) await pause();
      const wide = [...page.querySelectorAll('#viewer *')].filter(one => one.getBoundingClientRect().right > WIDTH + 1);
      document.querySelector('pre').textContent = JSON.stringify({over: page.documentElement.scrollWidth - WIDTH,
        shown: page.body.dataset.shown, wide: wide.map(one => one.outerHTML.slice(0, 80))}); });
    frame.srcdoc = document.querySelector('textarea').value;
    """.replace("WIDTH", str(width)).replace("BUSY", BUSY)
    inside = without_policy(page).replace("&", "&amp;").replace("<", "&lt;")
    frame = f'<iframe style="border:0" width="{width}" height="900"></iframe><textarea hidden>{inside}</textarea>'
    shell = f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}<pre id="answer"></pre><script>{ask}</script>'
    (tmp_path / "shell.html").write_text(shell, encoding="utf-8")
    found = answer(chromium(tmp_path / "shell.html", "--window-size=1400,1000")[0])
    assert found["shown"] and found["over"] <= 0 and found["wide"] == []


def test_the_pictures_of_the_readme_are_made_of_a_page(chromium, table, tmp_path):
    """In a folder of its own; without results or without scans it says what is missing."""
    script = [sys.executable, str(ROOT / "docs/images/make.py"), str(tmp_path / "made")]

    def make():
        return subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    (tmp_path / "made").mkdir()
    assert "report.html: is not there -> make demo" in make().stderr
    results = tmp_path / "experiments/demo/results"
    report.write(table, results, Request(cases="none"))
    for colour in ("grey", "red"):
        Image.new("RGB", (60, 40), colour).save(results / "figures" / f"contours-lesion-{colour}.png")
    assert "has no viewer" in make().stderr
    report.write(table, results)
    for colour in ("grey", "red"):
        Image.new("RGB", (60, 40), colour).save(results / "figures" / f"contours-lesion-{colour}.png")
    done = make()
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "made/demo.png").convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    for name in ("report", "viewer"):
        with Image.open(tmp_path / "made" / f"{name}.png") as picture:
            assert picture.width == 1152 and picture.height > 400
