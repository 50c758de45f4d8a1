"""The page as a whole, and the files of a report."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from tuner.comparison import ComparisonResult, ProblemsResult
from tuner.comparison.export import finite
from tuner.comparison.figures import DARK, LIGHT
from tuner.markup import STYLE as BASE_STYLE
from tuner.report.look import DRAW, PAGE, STYLE
from tuner.report.problems import problems_body
from tuner.report.sections import SECTIONS

__all__ = ["page", "replace_file", "write_problems", "write_report"]

NO_SCRIPT = (
    '<noscript><p class="notice">The plots need JavaScript; the tables hold all their numbers.</p></noscript>'
)


def write_report(result: ComparisonResult, folder: Path, *, refresh: float | None = None) -> Path:
    """Write `index.html`, `results.json` and `trials.csv` into `folder`, which is created where it is missing.

    Each file is replaced as a whole: whoever reads it meanwhile sees the old one or the new one.

    Args:
        result: of the comparison.
        folder: where to.
        refresh: seconds after which the page looks for a newer one, while the comparison runs.

    Returns:
        The page's path.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "results.json", result.to_json())
    replace_file(folder / "trials.csv", result.to_csv())
    return replace_file(folder / "index.html", page(result, refresh=refresh))


def write_problems(result: ProblemsResult, folder: Path) -> Path:
    """Write `index.html` and `results.json` of several problems; the report of each lies in a folder of its name.

    Returns:
        The page's path.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(finite(result.to_dict()), indent=1, allow_nan=False, ensure_ascii=False)
    replace_file(folder / "results.json", document + "\n")
    return replace_file(
        folder / "index.html", _document("Comparison over problems", problems_body(result), ())
    )


def page(result: ComparisonResult, *, refresh: float | None = None) -> str:
    """The report as one HTML document: no network, no other file; `refresh` as for `write_report`."""
    sections = [section(result) for section in SECTIONS]
    body = "\n".join([*(section for section in sections if section is not None), NO_SCRIPT])
    return _document(f"{result.definition.name}: comparison", body, (get_plotlyjs(), DRAW), refresh=refresh)


def _document(title: str, body: str, scripts: Sequence[str], *, refresh: float | None = None) -> str:
    return PAGE.substitute(
        policy=_policy(scripts),
        title=html.escape(title),
        refresh="" if refresh is None else f' data-refresh="{refresh:g}"',
        style=BASE_STYLE + STYLE.substitute(light=_colour_variables(LIGHT), dark=_colour_variables(DARK)),
        body=body,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def replace_file(path: Path, text: str) -> Path:
    """Write a file beside `path`, then put it in its place."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _colour_variables(colours: Sequence[str]) -> str:
    return " ".join(f"--arm{i}: {colour};" for i, colour in enumerate(colours))


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing is loaded, and no script runs but these."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
