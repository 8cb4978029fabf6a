"""Data Docs in a real browser: readable, complete, and nothing asked of the outside."""

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from rlhf_core.adapters.datasets.data_docs import find_docs, write_index
from rlhf_core.adapters.datasets.validation import validate_prepared_prompts
from tests.browser.pages import open_page, require_chromium
from tests.stages.data_helpers import CONFIG, rows, write

FOREIGN = "<iframe src='https://example.org/'></iframe>"
"""What a row may hold: shown as it is written, never obeyed."""


def make_docs(folder: Path) -> Path:
    frame = pd.DataFrame(
        {
            "row_id": [FOREIGN, "2", "3"],
            "file": ["reward_train", "prompts_heldout", "reward_train"],
            "side": ["train", "heldout", "train"],
            "dialogue_key": [FOREIGN, FOREIGN, "q"],
        }
    )
    write_index(folder, "Data checks", [validate_prepared_prompts(frame, folder)])
    return folder


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return make_docs(tmp_path_factory.mktemp("docs"))


def require_nothing_outside(docs: Path) -> None:
    pages = list(docs.glob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text()
        assert "<script" not in text
        assert "<iframe" not in text
        assert "http" not in text.replace("https://example.org/", "")
        assert "<link" not in text
        assert text.count("<style>") == 1


def test_pages_name_nothing_outside(docs):
    require_nothing_outside(docs)


def test_the_same_rows_give_the_same_bytes(docs, tmp_path):
    time.sleep(0.001)
    again = make_docs(tmp_path / "docs")
    assert {p.name for p in again.iterdir()} == {p.name for p in docs.iterdir()}
    for page in docs.glob("*.html"):
        assert (again / page.name).read_bytes() == page.read_bytes()


def test_docs_are_found_inside_the_dataset(tmp_path):
    assert find_docs(tmp_path) is None
    (tmp_path / "docs").mkdir()
    assert find_docs(tmp_path) is None, "half written"
    (tmp_path / "docs/index.html").touch()
    assert find_docs(tmp_path) == tmp_path / "docs"


@pytest.fixture
def page():
    """A page of a real browser, with the addresses it asked for and the errors it met."""
    require_chromium()
    asked, errors = [], []
    with open_page() as opened:
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("requestfailed", lambda request: errors.append(request.url))
        opened.on("console", lambda message: errors.append(message.text))
        yield opened
    assert asked
    assert all(url.startswith("file:") for url in asked)
    assert not errors


@pytest.mark.browser
def test_a_person_finds_the_failed_check_and_follows_it(docs, page):
    page.goto((docs / "index.html").as_uri())
    row = page.locator("tr", has_text="a dialogue is on one side only")
    assert row.locator(".failed").is_visible()
    assert "2 of 3 rows fail" in row.inner_text()
    row.get_by_role("link").click()
    page.get_by_text("a dialogue is on one side only").first.wait_for()
    page.get_by_role("cell", name=FOREIGN, exact=True).first.wait_for()
    page.get_by_role("link", name="Home").click()
    page.get_by_role("heading", name="Data checks").wait_for()


@pytest.mark.slow
@pytest.mark.browser
def test_what_prepare_made_is_read_from_the_address_it_printed(tmp_path, page, forked):
    blank = [{**row, "response_b": "  "} for row in rows([60])]
    write(tmp_path / "data" / "raw" / "comparisons.jsonl", rows(range(60)) + blank)
    (tmp_path / "small.yaml").write_text(CONFIG)
    said = forked.rlhf("prepare", "small.yaml", cwd=tmp_path)
    entrance = tmp_path / said.partition("data docs: ")[2].splitlines()[0]
    require_nothing_outside(entrance.parent)

    report = json.loads((tmp_path / "data" / "prepared" / "report.json").read_text())
    page.goto(entrance.as_uri())
    assert page.evaluate("document.styleSheets.length") == 1
    unusable = page.locator("tr", has_text="response_b is not blank")
    assert "1 of 61 rows fail" in unusable.inner_text()
    assert page.locator("td.failed").count() == 0
    for suite in report["validation"]:
        page.get_by_role("link", name=suite["suite"]).first.click()
        for check in suite["checks"]:
            page.get_by_text(check["name"]).first.wait_for()
        page.get_by_role("link", name="Home").click()
        page.get_by_role("heading", name="Data checks").wait_for()
