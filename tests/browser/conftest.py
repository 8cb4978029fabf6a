import pytest

from tests.browser.pages import open_page, require_chromium


@pytest.fixture(scope="module")
def page():
    """A page of a headless Chromium."""
    require_chromium()
    with open_page() as opened:
        yield opened
