"""Parts of a self-contained HTML page: whatever comes from data passes through one escape."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --ground: #ffffff; --soft: #f3f5f7; --line: #d5dae0; --dim: #59636e;
  --better: #0a6b3d; --worse: #a8321f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --ground: #14181d; --soft: #1e242b; --line: #39424d;
  --dim: #9aa5b1; --better: #5fd39a; --worse: #ff9180; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.5rem 4rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p, li { max-width: 60rem; } .dim { color: var(--dim); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { background: var(--soft); font-weight: 600; } th[scope=row], thead th:first-child { text-align: left; }
th[scope=row] { overflow-wrap: anywhere; max-width: 22rem; min-width: 10rem; }
td { font-variant-numeric: tabular-nums; }
td small { display: block; color: var(--dim); white-space: nowrap; } tr.all th, tr.all td { font-weight: 700; }
tr.all small { font-weight: 400; } .better { color: var(--better); } .worse { color: var(--worse); }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { max-width: 100%; min-width: 42rem; height: auto; }
summary { cursor: pointer; }
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: ``text``, ``small`` lines below it, and ``kind``: ``better``, ``worse`` or nothing."""

    text: str
    small: Sequence[str] = ()
    kind: str = ""

    def to_html(self) -> str:
        """The ``<td>``."""
        lines = "".join(f"<small>{escape(line)}</small>" for line in self.small)
        kind = f' class="{escape(self.kind)}"' if self.kind else ""
        return f"<td{kind}>{escape(self.text)}{lines}</td>"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table: its ``name``, its cells, and whether it sums up the others."""

    name: str
    cells: Sequence[Cell]
    total: bool = False


def table(corner: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """A table with a heading for every row and column."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in (corner, *columns))
    body = "\n".join(
        f'<tr{" class=all" if line.total else ""}><th scope="row">{escape(line.name)}</th>'
        f"{''.join(cell.to_html() for cell in line.cells)}</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figure(svg: str, *, caption: str) -> str:
    """An inline figure; ``svg`` is an element that is safe as it is."""
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}</figure>'


def heading(title: str) -> str:
    """The page's own heading."""
    return f"<h1>{escape(title)}</h1>"


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, *, dim: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=dim' if dim else ''}>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of plain texts; nothing for none."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def details(summary: str, *parts: str) -> str:
    """What is shown when asked for; works without scripts."""
    return "\n".join([f"<details><summary>{escape(summary)}</summary>", *parts, "</details>"])


def document(title: str, *parts: str) -> str:
    """A whole page, which loads nothing from anywhere and runs nothing."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *parts,
            "</main>\n</body>\n</html>\n",
        ]
    )
