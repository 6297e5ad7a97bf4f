"""table.tex as an author uses it: put into an article of one column and of two, compiled by pdflatex.

It needs pdflatex; COVIDSEG_INSTALL_LATEX=1 lets the test install Debian's packages.
"""

import os
import re
import shutil
import subprocess

import pytest

from covidseg import report
from covidseg.report.latex import escaped, latex
from covidseg.report.table import blocks

HOSTILE = "50% of $x_1$ & {\\input{/etc/passwd}} #1 ^ ~ | Ünï – λ"


@pytest.fixture(scope="module")
def pdflatex():
    if not shutil.which("pdflatex") and os.environ.get("COVIDSEG_INSTALL_LATEX") == "1":
        packages = "texlive-latex-base texlive-latex-recommended texlive-fonts-recommended"
        install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {packages}"
        subprocess.run(["bash", "-c", install], capture_output=True, timeout=600)
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed (COVIDSEG_INSTALL_LATEX=1 installs Debian's packages)")
    return "pdflatex"


@pytest.fixture
def whole_table(write_run, tmp_path):
    """Table II with both structures, two seeds, an external set, a joint run, a row of one's own with an evil name."""
    for error, row in enumerate(("unet4", "cab", "fv", "full", "fv_ungated")):
        for task in ("lesion", "lung"):
            for seed in (0, 1):
                write_run("table2", row, task, seed=seed, error=error, sets=("test", "external"), silent=(1,))
    write_run("table2", "full", "joint")
    write_run("table2", "my_row&co", "lesion")
    return report.collect(tmp_path / "runs" / "table2")


@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_it_compiles_without_an_overfull_box(pdflatex, whole_table, columns, tmp_path):
    report.write(whole_table, tmp_path / "out")
    text = (tmp_path / "out" / "table.tex").read_text()
    document = f"\\documentclass[{columns}]{{article}}\n\\usepackage{{booktabs,amssymb}}\n\\begin{{document}}\n"
    (tmp_path / "paper.tex").write_text(f"{document}{text}\n{escaped(HOSTILE)}\n\\end{{document}}\n")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_every_line_has_as_many_columns_as_the_table(whole_table):
    for table in latex(whole_table, blocks(whole_table)).split("\\begin{table*}")[1:]:
        columns = re.search(r"@\{\}(\w+)@\{\}", table)[1]
        for line in table.splitlines():
            if line.endswith("\\\\"):
                spanned = sum(int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spanned == len(columns), line


def test_ticks_stand_below_the_blocks_a_row_has(whole_table):
    text = latex(whole_table, blocks(whole_table)).split("\\begin{table*}")[1]
    lines = [line.split(" & ") for line in text.splitlines() if "checkmark" in line or "multicolumn{7}{l}" in line]
    ticks = [["checkmark" in cell for cell in line[:7]] for line in lines if len(line) > 10 and "multi" not in line[0]]
    names = ("CAB", "CEB", "PSB", "FV", "ASPP", "ResASPP", "PASPP")
    assert [[name for name, tick in zip(names, row, strict=True) if tick] for row in ticks] == [
        *(["CAB"], ["FV"], ["FV", "PASPP"], ["FV"]),
    ]
    assert [line[0] for line in lines if "multi" in line[0]] == [
        "\\multicolumn{7}{l}{UNet4}",
        "\\multicolumn{7}{l}{UNet4 + FV + PASPP (joint)}",
        "\\multicolumn{7}{l}{my\\_row\\&co}",
    ]
    assert "$^a$ gates fixed to 1" in text


def test_the_best_means_are_bold_and_the_papers_stand_below(write_run, tmp_path):
    for error, row in ((0, "fcn"), (3, "vnet")):
        write_run("table1", row, error=error, cases=1)
    results = report.collect(tmp_path / "runs" / "table1")
    text = latex(results, blocks(results))
    best, worst = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("FCN", "VNet"))
    assert best.count("\\textbf{1.000}") == 3 and "\\textbf" not in worst
    assert "(0.659)" in text and "(0.625)" in text
    assert "34.20" in best  # million parameters


def test_no_syntax_is_left_of_a_name():
    text = escaped(HOSTILE)
    assert "\\textbackslash{}input" in text and "Ünï" in text and "λ" not in text
    assert (
        re.search(r"(?<!\\)[&%#_^~]", text.replace("\\textasciicircum{}", "").replace("\\textasciitilde{}", "")) is None
    )
