"""The table for a paper: grouped heads, ticks for blocks, the best value bold, the paper's own value below ours.

It needs the packages booktabs and amssymb, fits the text of a one-column article and spans both columns of a two-column
one (`table*`). Names come from users: what LaTeX would read as syntax is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence

from covidseg.evaluation.metrics import IN_PAPER
from covidseg.report.collect import TableResults, paper_tables
from covidseg.report.table import Block, Line

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$^\dagger$", "–": "--",
    "<": r"$<$", ">": r"$>$", "≤": r"$\leq$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "|": r"\textbar{}",
}  # fmt: skip
_TICK, _NONE = r"$\checkmark$", "--"
_HEADS = {"Dice": "Dice", "sensitivity": "sens.", "precision": "prec."}
_WIDEST_NAME = 34  # characters that a table of two structures has room for


def latex(results: TableResults, blocks: Sequence[Block]) -> str:
    """A `table*` for each set of cases."""
    sets = dict.fromkeys(block.set for block in blocks)
    tables = [_table(results, [block for block in blocks if block.set == name]) for name in sets]
    return "% \\usepackage{booktabs,amssymb}\n" + "\n".join(tables)


def escaped(text: str) -> str:
    """`text` as LaTeX prints it; what pdfLaTeX's fonts may lack becomes a question mark."""
    letters = (_ESCAPES.get(letter, letter) for letter in " ".join(text.split()))
    return "".join(letter if len(letter) > 1 or ord(letter) < 0x180 else "?" for letter in letters)


def _table(results: TableResults, blocks: Sequence[Block]) -> str:
    known = paper_tables().get(results.table, {})
    marks = list(known.get("marks", []))
    rows = known.get("rows", {})
    names = {line.method: line.title for block in blocks for line in block.lines}
    lines = [{line.method: line for line in block.lines} for block in blocks]
    best = [_best(block) for block in blocks]
    columns = ("c" * len(marks) or "l") + "rrr" * len(blocks) + "rr"
    body = []
    for method, title in names.items():
        own = [by_method.get(method) for by_method in lines]
        head = _method(method, title, marks, rows.get(method, {}))
        body.append("\n".join(_lines(head, own, best, len(marks) or 1)))
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{1.5pt}",
            r"\setlength{\belowcaptionskip}{4pt}",
            f"\\caption{{{_caption(results, blocks, rows)}}}",
            f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            *_head(marks, [block.structure for block in blocks]),
            r"\midrule",
            "\n\\addlinespace[2pt]\n".join(body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _head(marks: Sequence[str], structures: Sequence[str]) -> Iterator[str]:
    """Two lines: what is grouped, and the groups' columns."""
    first = len(marks) or 1
    groups = [f"\\multicolumn{{{first}}}{{c}}{{{'blocks' if marks else ''}}}"]
    groups += [f"\\multicolumn{{3}}{{c}}{{{escaped(name)}}}" for name in structures]
    yield " & ".join([*groups, "", ""]) + r" \\"
    rules = [f"\\cmidrule(lr){{1-{first}}}"] if marks else []
    rules += [f"\\cmidrule(lr){{{first + 3 * at + 1}-{first + 3 * at + 3}}}" for at in range(len(structures))]
    yield "".join(rules)
    cells = list(marks) or ["method"]
    cells += [_HEADS.get(metric.title, metric.title) for metric in IN_PAPER] * len(structures)
    yield " & ".join([*cells, "M", "h"]) + r" \\"


def _lines(head: str, own: Sequence[Line | None], best: Sequence[Mapping[str, str]], first: int) -> Iterator[str]:
    """The means; below them their sd; below these the paper's values, where it has any."""
    there = [line for line in own if line]
    parameters = next((f"{line.parameters / 1e6:.2f}" for line in there if line.parameters is not None), _NONE)
    hours = [line.hours for line in there if line.hours is not None]
    cost = [parameters, f"{sum(hours) / len(hours):.2f}" if hours else _NONE]
    means = [cell for line, top in zip(own, best, strict=True) for cell in _means(line, top)]
    yield " & ".join([head, *means, *cost]) + r" \\"
    for cells in (_sds(own), _papers(own)):
        if any(cells):
            yield "&" * first + " " + " & ".join(f"\\tiny {cell}" if cell else "" for cell in cells) + r" & & \\"


def _means(line: Line | None, best: Mapping[str, str]) -> list[str]:
    if line is None or not line.runs:
        return [_NONE] * len(IN_PAPER)
    cells = []
    for metric in IN_PAPER:
        text = _printed(line, metric.column)
        cells.append(f"\\textbf{{{text}}}" if text == best.get(metric.column) else text)
    return cells


def _sds(own: Sequence[Line | None]) -> list[str]:
    found = []
    for line in own:
        for metric in IN_PAPER:
            summary = line.metrics.get(metric.column) if line else None
            found.append(f"$\\pm${summary.sd:.3f}" if summary and summary.sd is not None else "")
    return found


def _papers(own: Sequence[Line | None]) -> list[str]:
    return [f"({value:.3f})" if value is not None else "" for line in own for value in _paper(line)]


def _paper(line: Line | None) -> Sequence[float | None]:
    return line.paper if line and line.paper else (None,) * len(IN_PAPER)


def _best(block: Block) -> dict[str, str]:
    """{metric: the highest mean, as printed}, where there is more than one method to be better than."""
    found = {}
    for metric in IN_PAPER:
        texts = [_printed(line, metric.column) for line in block.lines if metric.column in line.metrics]
        if len(texts) > 1:
            found[metric.column] = max(texts)
    return found


def _printed(line: Line, column: str) -> str:
    return f"{line.metrics[column].mean:.3f}" if column in line.metrics else _NONE


def _method(method: str, title: str, marks: Sequence[str], row: Mapping[str, object]) -> str:
    """A tick below each of the method's blocks; the title of one whose blocks are not known, or that has none."""
    own = row.get("marks")
    if not marks:
        return _name(title)
    if not isinstance(own, Sequence) or not own:
        return f"\\multicolumn{{{len(marks)}}}{{l}}{{{_name(title)}}}"
    tick = _TICK + ("$^a$" if row.get("remark") else "")
    return " & ".join(tick if mark in own else "" for mark in marks)


def _name(title: str) -> str:
    short = title if len(title) <= _WIDEST_NAME else title[: _WIDEST_NAME - 3] + "..."
    return escaped(short)


def _caption(results: TableResults, blocks: Sequence[Block], rows: Mapping[str, Mapping[str, object]]) -> str:
    shown = [line for block in blocks for line in block.lines]
    cases = sorted(
        {line.metrics[metric.column].n for line in shown for metric in IN_PAPER if metric.column in line.metrics}
    )
    seeds = sorted({len(line.seeds) for line in shown if line.seeds})
    parts = [f"{results.title}, {blocks[0].set} set."]
    parts += [f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(block.protocol for block in blocks) if text]
    if cases:
        n = f"n = {cases[0]}" if len(cases) == 1 else f"n from {cases[0]} to {cases[-1]} as a score is defined"
        count = " or ".join(map(str, seeds))
        parts.append(
            f"Mean ± sd over cases ({n}), each averaged over {count} seed{'s' if count != '1' else ''}; best in bold."
        )
    if any(line.paper for line in shown):
        parts.append("In brackets: the values of Yan et al. (2020), on other data.")
    parts.append("M: million parameters; h: hours of training of a run.")
    text = escaped(" ".join(parts))
    remarks = dict.fromkeys(
        str(rows[line.method]["remark"]) for line in shown if rows.get(line.method, {}).get("remark")
    )
    return text + "".join(f" $^a$ {escaped(remark)}." for remark in remarks)
