"""Data Docs in a real browser: readable, complete, and nothing asked of the outside."""

import shutil

import pandas as pd
import pytest

from rlhf_core.adapters.data_docs import write_index
from rlhf_core.adapters.validation import validate_prepared_prompts

SUITE = "prepared prompts"


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    frame = pd.DataFrame(
        {
            "row_id": ["<b>1</b>", "2", "3"],
            "file": ["reward_train", "prompts_heldout", "reward_train"],
            "side": ["train", "heldout", "train"],
            "prompt_key": ["p", "p", "q"],
        }
    )
    write_index(folder, "Data checks", [validate_prepared_prompts(frame, folder)])
    return folder


def test_pages_name_nothing_outside(docs):
    for page in docs.glob("*.html"):
        text = page.read_text()
        assert "<script" not in text
        assert text.count("<link") == 1


@pytest.mark.browser
def test_a_person_finds_the_failed_check_and_follows_it(docs):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((docs / "index.html").as_uri())
        row = page.locator("tr", has_text="a prompt is on one side only")
        assert row.locator(".failed").is_visible()
        assert "2 of 3 rows fail" in row.inner_text()
        row.get_by_role("link").click()
        assert page.get_by_text("a prompt is on one side only").first.is_visible()
        assert page.get_by_text("prompt_key").first.is_visible()
        page.get_by_role("link", name="Home").click()
        assert page.get_by_role("heading", name="Data checks").is_visible()
        browser.close()
    assert asked
    assert all(url.startswith("file:") for url in asked)
