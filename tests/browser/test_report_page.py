import pytest

from rlhf_core.config import GateConfig
from rlhf_core.evaluation.report import render_page
from tests.browser.pages import open_page, require_chromium
from tests.evaluation.test_report import SCORERS, finished, page

GATES = (
    GateConfig(metric="policy/win_rate", at_least=0.6),
    GateConfig(metric="policy/kl", at_most=8.0),
    GateConfig(metric=f"policy/{'a_very_long_name_' * 4}rate", at_most=0.1),
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

HIDDEN = """[...document.querySelectorAll(".scroll")]
  .filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
"""Tables that are wider than their place, whose right end one would have to scroll to."""


@pytest.mark.browser
def test_the_report_is_right_on_a_phone_and_on_a_laptop(tmp_path):
    """Nothing scrolls sideways, no table does, and every gate is drawn inside of the window."""
    require_chromium()
    numbers = {"win_rate": (0.58, 0.5, 0.66), "kl": (2.0, 1.0, 3.0)}
    numbers[GATES[2].metric.removeprefix("policy/")] = (0.2, 0.15, 0.25)
    for vice in ("language_switch", "language_switch_increase"):
        numbers[vice] = (0.0123, -0.0234, 0.0456)
    results = (*SCORERS, finished(GATES, **numbers))
    html = render_page(page(results=results, facts={"commit": "a" * 60}))
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    with open_page(390, 844) as opened:
        for width in (390, 1280):
            opened.set_viewport_size({"width": width, "height": 844})
            opened.goto(file.as_uri())
            assert opened.evaluate(OVERFLOW) == 0
            assert opened.evaluate(HIDDEN) == []
            for part in (".gate .name", ".gate .track", ".gate .chip"):
                boxes = [found.bounding_box() for found in opened.locator(part).all()]
                assert len(boxes) == len(GATES)
                assert all(0 <= box["x"] <= box["x"] + box["width"] <= width for box in boxes)
                assert all(box["width"] > 30 and box["height"] > 10 for box in boxes)
