"""Data Docs as a folder of static pages: Great Expectations draws them, nothing is fetched.

Its own pages load a dozen files from content delivery networks and stay empty without them. Here
every reference to the outside is taken out and one small style sheet put in its place, within each
page: MLflow shows a page alone, without the files beside it.
"""

import copy
import html
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_core.schema import ValidationReport
from rlhf_core.schema.shown import shown
from rlhf_core.storage.records import write_text

INDEX = "index.html"
FOLDER = "docs"
_OUTSIDE = (
    re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<link\b[^>]*>", re.IGNORECASE),
    re.compile(r"<img\b[^>]*>", re.IGNORECASE),
    re.compile(r"<style\b.*?</style>", re.DOTALL | re.IGNORECASE),
    re.compile(r"\son\w+=(\"[^\"]*\"|'[^']*')", re.IGNORECASE),
)
_FOOTER = re.compile(r"<footer>.*?</footer>", re.DOTALL)
"""An invitation to a newsletter."""
_LOAD_TIME = re.compile(r"(ge_load_time</span>.*?<span[^>]*>)[\dTZ.]+", re.DOTALL)
_RANDOM_ID = re.compile(r"(collapse-body)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HOME = re.compile(r"(?:\.\./)+index\.html")
_SUITE_LINK = re.compile(r'<a href="(?:\.\./)+expectations/[^"]*"[^>]*>(.*?)</a>', re.DOTALL)
_STYLE = """\
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem;
  color: #222; background: #fff; }
h1, h4, h5 { margin: 0.4rem 0; }
a { color: #0b5fad; }
ul, ol { list-style: none; margin: 0; padding: 0; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; width: 100%; }
td, th { border: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { background: #f3f4f6; }
.alert { background: #eef2f7; border-radius: 6px; margin-top: 1rem; padding: 0.6rem 1rem; }
.card, .navbar-brand, footer { display: none; }
.card.collapse { display: block; }
.card-body { overflow-wrap: anywhere; }
.badge { background: #eef2f7; border-radius: 4px; padding: 0 0.3rem; }
.text-success, .passed { color: #14713d; }
.text-danger, .failed { color: #b3261e; }
.text-warning, .warned { color: #8a5a00; }
.fa-check-circle::before { content: "passed"; }
.fa-times::before { content: "failed"; }
.fa-exclamation-triangle::before { content: "warning"; }
i { font-style: normal; }
pre { white-space: pre-wrap; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #e6e6e6; }
  a { color: #8ab8ff; }
  th, .alert, .badge { background: #24272d; }
  td, th { border-color: #3a3f47; }
  .text-success, .passed { color: #6fd39a; }
  .text-danger, .failed { color: #ff8a80; }
  .text-warning, .warned { color: #f0c060; }
}
</style>
"""


@cache
def _page_view() -> Any:
    """Return Great Expectations' view, one for all pages: each compiles its templates anew."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def write_page(folder: Path, suite: str, result: Any) -> Path:
    """Write the Data Docs page of one suite's validation result: same rows, same bytes."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    shown = copy.copy(result)
    shown.results = [copy.copy(found) for found in result.results]
    for found in shown.results:
        found.result = _escaped(found.result)
    page: str = _page_view().render(ValidationResultsPageRenderer().render(shown))
    for pattern in (*_OUTSIDE, _FOOTER):
        page = pattern.sub("", page)
    page = _RANDOM_ID.sub(r"\1", _LOAD_TIME.sub(r"\1not kept", page))
    page = _SUITE_LINK.sub(r"\1", _HOME.sub(INDEX, page))
    page = page.replace("</head>", f"{_STYLE}</head>", 1)
    path = folder / page_name(suite)
    write_text(path, page)
    return path


def write_index(folder: Path, title: str, reports: Sequence[ValidationReport]) -> Path:
    """Write the entrance: every check of every suite, with a link to the suite's page."""
    rows = [
        f'<tr><td><a href="{page_name(report.suite)}">{_text(report.suite)}</a></td>'
        f"<td>{_text(check.name)}</td>{_verdict(check.passed, check.severity)}"
        f"<td>{_text(check.detail)}</td></tr>"
        for report in reports
        for check in report.checks
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>{_STYLE}</head>"
        f"<body><h1>{html.escape(title)}</h1><table><thead><tr><th>suite</th><th>check</th>"
        "<th>outcome</th><th>detail</th></tr></thead><tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></body></html>\n"
    )
    write_text(folder / INDEX, page)
    return folder / INDEX


def find_docs(dataset: Path) -> Path | None:
    """Return the folder of a prepared dataset's Data Docs; None where they are not here."""
    folder = dataset / FOLDER
    return folder if (folder / INDEX).is_file() else None


def page_name(suite: str) -> str:
    """Return the file name of a suite's page."""
    return f"{suite.replace(' ', '-')}.html"


def _escaped(value: Any) -> Any:
    """Return a result whose texts are shown and not obeyed: rows are other people's writing."""
    if isinstance(value, str):
        return html.escape(shown(value))
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_escaped(item) for item in value)
    return value


def _text(value: str) -> str:
    return html.escape(shown(value))


def _verdict(passed: bool, severity: str) -> str:
    if passed:
        return '<td class="passed">passed</td>'
    return (
        '<td class="failed">FAILED</td>'
        if severity == "block"
        else '<td class="warned">warning</td>'
    )
