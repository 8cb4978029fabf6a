"""What documents show is so: links lead somewhere, code runs, settings load."""

import doctest
import json
import re
from pathlib import Path

import pytest
import yaml

from rlhf_core.config import load_config
from rlhf_core.dataprep.sources.look import look_at

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
PYTHON_CODE = [page for page in PAGES if ">>> " in page.read_text(encoding="utf-8")]


def anchors(page):
    """Return the anchors of a page's headings as GitHub and the site write them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere():
    broken = []
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or path.startswith("api/"):  # the site makes the reference
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert broken == []


@pytest.mark.parametrize("page", PYTHON_CODE, ids=lambda page: page.name)
def test_python_that_is_shown_gives_what_is_shown(page):
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried > 0
    assert failed == 0


def test_the_settings_shown_for_ones_own_data_are_those_that_the_file_asks_for(tmp_path):
    text = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
    row, settings = (re.search(rf"```{kind}\n(.+?)```", text, re.DOTALL)[1]
                     for kind in ("json", "yaml"))  # fmt: skip
    rows = [
        {
            **json.loads(row),
            "question": f"How do I get to room {number}?",
            "better": "ab"[number % 2],
        }
        for number in range(40)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.yaml").write_text(settings)
    found = look_at(tmp_path / "mine.jsonl")
    shown = yaml.safe_load(settings)["data"]["preferences"]
    assert found.settings | {"path": shown["path"]} == shown
    assert load_config(tmp_path / "mine.yaml").project == "mine"
