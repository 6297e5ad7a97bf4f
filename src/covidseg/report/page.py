"""The report as one HTML file: pictures inside it, no script, nothing fetched, every text escaped."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from covidseg.report.section import Section

_PLOT_BYTES = 60_000  # what a plot has at most without loss
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e7eb; }
th { border-bottom: 2px solid #7b8794; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; }
p.note { color: #52606d; font-size: .82rem; margin: .4rem 0; max-width: 60rem; }
pre { background: #f5f7fa; padding: .6rem; overflow-x: auto; font-size: .8rem; }
figure { margin: 1.6rem 0; } img { max-width: 100%; } figcaption { color: #52606d; font-size: .82rem; }
"""


def html(title: str, sections: Sequence[Section], pictures: Mapping[str, Path]) -> str:
    """The page; `pictures` are PNG files by caption."""
    body = "".join(_section(section) for section in sections)
    figures = "".join(_figure(caption, path) for caption, path in pictures.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}"
        + (f"<h2>Figures</h2>\n{figures}" if figures else "")
        + '<p class="note">Research use only.</p></body></html>\n'
    )


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
    rows = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in section.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    table = (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
        if section.rows
        else ""
    )
    code = f"<pre>{escape(section.code)}</pre>" if section.code else ""
    return f"<h2>{escape(section.title)}</h2>\n{code}{table}{notes}\n"


def _kind(cell: str) -> str:
    return ' class="text"' if len(cell) > 40 else ""


def _figure(caption: str, path: Path) -> str:
    content = base64.b64encode(_webp(path)).decode()
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/webp;base64,{content}"><figcaption>{text}</figcaption></figure>\n'
    )


def _webp(path: Path) -> bytes:
    """A third of the PNG file's size: without loss for plots, with a little for pictures of scans."""
    with Image.open(path) as picture:
        exact, smaller = io.BytesIO(), io.BytesIO()
        picture.convert("RGB").save(exact, "WEBP", lossless=True)
        if exact.tell() <= _PLOT_BYTES:
            return exact.getvalue()
        picture.convert("RGB").save(smaller, "WEBP", quality=88)
        return smaller.getvalue()
