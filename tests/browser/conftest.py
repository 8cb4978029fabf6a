import pytest

from tests.browser.pages import find_chromium, open_page


@pytest.fixture(scope="module")
def page():
    """A page of a headless Chromium."""
    if find_chromium() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with open_page() as opened:
        yield opened
