"""HTML of our own pages: a string that is HTML, the few elements that they are made of, and how they look.

All other strings are text, and escaped where they meet HTML. The look needs no script and no other file, and is meant
for phones and dark rooms too.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["STYLE", "Html", "data_table", "facts_list", "tag", "titled"]


VOID = frozenset({"input", "link", "meta"})
"""Elements that have no end."""


class Html(str):
    """A string that is HTML already. All others are text, and escaped where they meet it."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """An element; `class_` and `data_label` stand for the attributes `class` and `data-label`."""
    assert not (children and name in VOID)
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    end = "" if name in VOID else f"</{name}>"
    return Html(f"<{name}{given}>{''.join(map(_escaped, children))}{end}")


def _escaped(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


def titled(title: str, *children: str) -> Html:
    """A section under its title."""
    return tag("section", tag("h2", title), *children)


def facts_list(facts: Mapping[str, str]) -> Html:
    """Facts by name."""
    return tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items()), class_="facts")


def data_table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, numbers: bool = True) -> Html:
    """A table whose first column names the row; on a narrow screen each row becomes a card."""
    head = tag("tr", *(tag("th", title, scope="col") for title in titles))
    body = [
        tag(
            "tr",
            tag("th", line[0], scope="row"),
            *(tag("td", cell, data_label=title) for title, cell in zip(titles[1:], line[1:], strict=True)),
        )
        for line in lines
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="numbers" if numbers else "words")
    return tag("div", table, class_="scroll")


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1d21; --soft: #62676e; --line: #dfe1e4; --faint: #f5f6f7;
  --warn: #8a5300; --warn-paper: #fff6e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131519; --ink: #e7e8ea; --soft: #9aa1aa; --line: #2e3238; --faint: #1b1e23;
    --warn: #f0c274; --warn-paper: #2a2213;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem) 5rem; }
.eyebrow {
  margin: 0; color: var(--soft); font-size: .75rem; font-weight: 600; letter-spacing: .1em; text-transform: uppercase;
}
h1 { margin: .1rem 0 1rem; font-size: clamp(1.7rem, 5vw, 2.3rem); line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 1rem; font-size: 1.2rem; letter-spacing: -.005em; }
h3 { margin: 1.75rem 0 .5rem; font-size: .95rem; }
h1, dd, td, th, pre, p { overflow-wrap: anywhere; }
.notice {
  margin: 0 0 1.25rem; padding: .7rem 1rem; border-left: 3px solid var(--warn); background: var(--warn-paper);
  color: var(--warn); font-size: .95rem;
}
.note { max-width: 48rem; margin: .75rem 0 0; color: var(--soft); font-size: .85rem; }
.quiet { color: var(--soft); }
section { margin-top: 3.5rem; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.25rem; margin: 0; font-size: .92rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; max-width: 34rem; }
section .facts { display: block; }
section .facts > div { display: grid; grid-template-columns: 6rem 1fr; padding: .2rem 0; }
section .facts dt { font-size: inherit; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
thead tr { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--line); }
tbody tr:last-child { border-bottom: 1.5px solid var(--ink); }
th, td { padding: .45rem .5rem; text-align: left; vertical-align: baseline; }
th:first-child { padding-left: 0; } td:last-child, th:last-child { padding-right: 0; }
tbody th { font-weight: 600; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; white-space: nowrap; }
details { margin-top: 1.5rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); }
pre {
  padding: 1rem; background: var(--faint); font-size: .8rem; line-height: 1.5; white-space: pre-wrap;
}
@media (max-width: 46rem) {
  section { margin-top: 2.75rem; }
  .scroll { overflow: visible; }
  table, tbody { display: block; }
  thead { display: none; }
  tbody tr {
    display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .45rem 1rem; padding: .9rem 0;
    border-top: 1px solid var(--line);
  }
  tbody tr:first-child { border-top: 1.5px solid var(--ink); }
  tbody th { grid-column: 1 / -1; padding: 0; font-size: 1rem; }
  tbody td, .numbers td { display: block; padding: 0; text-align: left; white-space: normal; }
  tbody td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .75rem; }
  tbody td[data-label="study"] { grid-column: span 2; }
  .words tbody tr { grid-template-columns: repeat(2, 1fr); }
  tbody td[data-label=""] { display: none; }
  section .facts > div { display: block; padding: .35rem 0; }
}
"""
"""What all pages share."""
