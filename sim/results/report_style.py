"""What the report pages share: their look (phone, desk, dark mode, paper), their frame, and how they are written."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from policies.files.made_once import replacing
from policies.types import VegaError

STYLE = """\
:root {
  color-scheme: light dark;
  --ground: #fbfaf7; --paper: #ffffff; --ink: #1d2129; --soft: #667085; --rule: #e3e1da;
  --commanded: #d9480f; --measured: #2b5f9e; --difference: #2f7d4f;
  --p50: #1f5a8a; --p95: #6fa3cc; --p99: #c5dcee;
  --good: #1b7f4b; --bad: #b42318; --error: #9a6700;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --paper: #1c1f25; --ink: #e8e6e1; --soft: #98a2b3; --rule: #30343c;
    --commanded: #ff8a4c; --measured: #7db4ee; --difference: #6cc795;
    --p50: #8cc0ee; --p95: #4b80ad; --p99: #2d4d68;
    --good: #4cc38a; --bad: #ff8a80; --error: #e0b341;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Liberation Sans", sans-serif; }
header, main { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
.over { margin: 0; color: var(--soft); font-size: .9rem; }
h1 { margin: .2rem 0 .4rem; font-size: clamp(1.35rem, 4.5vw, 2rem);
  line-height: 1.2; font-weight: 650; text-wrap: balance; }
h2 { margin: 0 0 .6rem; font-size: 1.15rem; }
h3 { margin: .9rem 0 .3rem; font-size: .9rem; font-weight: 600; color: var(--soft); }
.verdict { display: inline-block; margin: 0 0 1rem; padding: .2rem .7rem; border-radius: 1rem; border: 1.5px solid;
  font-weight: 600; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .error { color: var(--error); }
section { margin: 0 0 1.2rem; padding: 1rem; background: var(--paper);
  border: 1px solid var(--rule); border-radius: .6rem; }
.note, .none { margin: 0 0 .6rem; color: var(--soft); font-size: .9rem; }
video { display: block; width: 100%; border-radius: .4rem; background: #000; }
figure { margin: 0; }
.strip { display: grid; grid-template-columns: repeat(8, 1fr); gap: .35rem; }
.strip img { display: block; width: 100%; border-radius: .25rem; }
.strip figcaption { color: var(--soft); font-size: .75rem; text-align: center; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .4rem 1.2rem; }
.charts figcaption { display: flex; justify-content: space-between; font-size: .85rem; font-weight: 600; }
.charts figcaption span { color: var(--soft); font-weight: 400; }
.chart { display: block; width: 100%; height: auto; }
.bars { max-width: 34rem; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.name { fill: var(--ink); font-size: 12.5px; }
path { fill: none; stroke-linejoin: round; }
path.commanded { stroke: var(--commanded); stroke-width: 3.2; stroke-opacity: .55; }
path.measured { stroke: var(--measured); stroke-width: 1.3; }
path.difference { stroke: var(--difference); stroke-width: 1.3; }
.apart { margin: .1rem 0 0; color: var(--soft); font-size: .75rem; }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .6rem; margin: 0 0 .4rem; color: var(--soft);
  font-size: .8rem; font-variant-numeric: tabular-nums; }
.scale .bar { flex: 0 1 12rem; min-width: 5rem; height: .7rem; border-radius: .2rem; }
.legend { margin: 0 0 .4rem; color: var(--soft); font-size: .85rem; }
.key { display: inline-block; width: 1.1rem; height: .55rem; margin: 0 .35rem 0 1rem; border-radius: .15rem; }
.key:first-child { margin-left: 0; }
.key.commanded { background: var(--commanded); } .key.measured { background: var(--measured); }
.key.difference { background: var(--difference); }
.p50 { fill: var(--p50); background: var(--p50); }
.p95 { fill: var(--p95); background: var(--p95); }
.p99 { fill: var(--p99); background: var(--p99); }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--soft); font-weight: 500; }
.facts td { text-align: left; overflow-wrap: anywhere; } .facts th { width: 9rem; color: var(--soft); }
@media (max-width: 34rem) {
  .strip { grid-template-columns: repeat(4, 1fr); }
  .facts th { width: 6.5rem; }
}
@media print {
  :root { --ground: #fff; --paper: #fff; --ink: #000; --soft: #555; --rule: #ccc;
    --commanded: #d9480f; --measured: #2b5f9e; --difference: #2f7d4f; --p50: #1f5a8a; --p95: #6fa3cc; --p99: #c5dcee;
    --good: #1b7f4b; --bad: #b42318; --error: #9a6700; }
  body { font-size: 11pt; }
  header { padding-top: 0; }
  video { display: none; }
  section { border: 0; padding: 0; }
  .charts { grid-template-columns: repeat(2, 1fr); }
  figure, tr, h2 { break-inside: avoid; }
  h2, h3, .note, .legend { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def document(title: str, header: str, sections: Sequence[str], look: str = "") -> str:
    """A whole page.

    header: HTML above the sections.  look: CSS beside that of all pages.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}{look}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def section(title: str, body: str, note: str = "") -> str:
    """body: HTML; title and note: text."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>\n"


def facts_table(facts: Mapping[str, object]) -> str:
    """Names and values, without those that have no value."""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items() if v)
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text that scrolls sideways on a phone."""

    def cells(row: Sequence[str]) -> str:
        return f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(text)}</td>" for text in row[1:])

    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def data_url(data: bytes, kind: str) -> str:
    """kind: MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def write_document(path: Path, text: str) -> None:
    """Write a page; it appears whole or not at all.  Raises VegaError if it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with replacing(path, partial):
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise VegaError(
            f"The page {path} could not be written ({error.strerror}): make room on the disk, or write elsewhere."
        ) from error
