"""The report as one HTML file: pictures inside it, nothing fetched, every text escaped, no script but its own.

Light and dark as the reader's system is, readable from a telephone to paper, by keyboard and by screen reader.
"""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from covidseg.report.section import Section

_PLOT_BYTES = 60_000  # what a plot has at most without loss
_PIXELS = 1.5  # of a figure for one of the page, so that it is sharp on fine screens, too
_LONG = 40  # characters of a cell that may wrap
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --paper: #fff; --rule: #e4e7eb; --head: #7b8794;
  --code: #f5f7fa; --link: #0b5394; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #b3bdc7; --paper: #14181d; --rule: #2f3841;
  --head: #7b8794; --code: #1e242b; --link: #8ab8e6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
a { color: var(--link); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
nav ol { columns: 18rem; font-size: .85rem; padding-left: 1.6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; } thead th { border-bottom: 2px solid var(--head); vertical-align: bottom; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit;
  cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
tbody th { font-weight: normal; } small { color: var(--soft); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); min-width: 7rem; }
td.text { text-align: left; white-space: normal; min-width: 16rem; }
p.say { font-size: 1.02rem; max-width: 60rem; }
p.note { color: var(--soft); font-size: .82rem; margin: .4rem 0; max-width: 60rem; }
pre { background: var(--code); padding: .6rem; overflow-x: auto; font-size: .8rem; }
.first { display: flex; flex-wrap: wrap; gap: 0 2rem; } .first section { max-width: 100%; min-width: 0; }
.first section:not(:last-child) { flex: 1 1 26rem; max-width: 33rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .82rem; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } nav { display: none; }
  .scroll { overflow: visible; } td { white-space: normal; } table { font-size: 7pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } th:first-child { position: static; min-width: 0; }
  pre { white-space: pre-wrap; } }
@page { size: A4 landscape; margin: 12mm; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file and its caption; it stands below the section of the same `key`, else among the figures at the end."""

    caption: str
    path: Path
    key: str = ""


@dataclass(frozen=True)
class Insert:
    """HTML that another module made: a section, the script that draws in it, its style."""

    title: str
    content: str
    style: str
    script: str


def html(
    title: str, sections: Sequence[Section], pictures: Sequence[Picture] = (), insert: Insert | None = None
) -> str:
    """The page; the `insert` stands below the contents."""
    keys = {section.key for section in sections if section.key}
    body, entries = [], []
    first = next((at + 1 for at, section in enumerate(sections) if section.key.startswith("table/")), 0)
    for position, section in enumerate(sections):
        below = [picture for picture in pictures if section.key and picture.key == section.key]
        name = f"{_slug(section.title)}-{position}"
        entries.append((name, section.title))
        body.append(_section(name, section, below))
    if others := [picture for picture in pictures if picture.key not in keys]:
        entries.append(("figures", "Figures"))
        body.append('<section><h2 id="figures">Figures</h2>\n' + "".join(map(_figure, others)) + "</section>")
    if insert:
        entries.insert(first, ("viewer", insert.title))
    scripts = [sorting(), *([insert.script] if insert else [])]
    contents = "".join(f'<li><a href="#{name}">{escape(entry)}</a></li>' for name, entry in entries)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{insert.style if insert else ''}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1>\n<div class="first">{"".join(body[:first])}</div>'
        f'<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>\n'
        f"{insert.content if insert else ''}{''.join(body[first:])}"
        f'<p class="note">Research use only.</p></main>{"".join(f"<script>{one}</script>" for one in scripts)}'
        "</body></html>\n"
    )


@cache
def sorting() -> str:
    """The script that sorts tables."""
    return files("covidseg.report").joinpath("page.js").read_text(encoding="utf-8")


def policy(scripts: Sequence[str]) -> str:
    """What a page allows: these scripts, letter for letter, and nothing from anywhere."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    own = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {own}; "
        "base-uri 'none'; form-action 'none'"
    )


def _section(name: str, section: Section, pictures: Sequence[Picture]) -> str:
    kind = "note" if section.rows or section.code else "say"
    notes = "".join(f'<p class="{kind}">{escape(note)}</p>' for note in section.notes)
    code = f'<pre tabindex="0">{escape(section.code)}</pre>' if section.code else ""
    table = _table(section) if section.rows else ""
    figures = "".join(map(_figure, pictures))
    return f'<section><h2 id="{name}">{escape(section.title)}</h2>\n{code}{table}{notes}{figures}</section>\n'


def _table(section: Section) -> str:
    """It scrolls in itself where the window is narrow, its first column in sight, also by the arrow keys."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' if cell else "<td></td>" for cell in section.header)
    rows = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>' + "".join(map(_cell, row[1:])) + "</tr>\n" for row in section.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(section.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f'<td class="text">{_text(text)}</td>' if len(text) > _LONG else f"<td>{_text(text)}</td>"


def _text(cell: str) -> str:
    """What follows a line's end in a cell is small, below the rest."""
    first, end, rest = cell.partition("\n")
    return escape(first) + (f"<br><small>{escape(rest)}</small>" if end else "")


def _figure(picture: Picture) -> str:
    content, width = _webp(picture.path)
    text = escape(picture.caption)
    source = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    image = f'<img alt="{text}" width="{round(width / _PIXELS)}" src="{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"


def _webp(path: Path) -> tuple[bytes, int]:
    """(picture, pixels in a line): a third of the file's size, without loss for plots, with a little for scans."""
    with Image.open(path) as picture:
        exact, smaller = io.BytesIO(), io.BytesIO()
        picture.convert("RGB").save(exact, "WEBP", lossless=True)
        if exact.tell() <= _PLOT_BYTES:
            return exact.getvalue(), picture.width
        picture.convert("RGB").save(smaller, "WEBP", quality=88)
        return smaller.getvalue(), picture.width


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "section"
