"""docs/data.md says what the code does: its rows are read, its reasons and metrics exist."""

import re
import typing
from pathlib import Path

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.config.data import DATA_METRICS, SourceFormat
from rlhf_core.dataprep.measures.bias import STYLES
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.rows import Reason

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(jsonl|json|csv) (\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_every_format_has_an_example():
    assert {name for _, name, _ in EXAMPLES} == set(typing.get_args(SourceFormat))


@pytest.mark.parametrize(("ending", "name", "text"), EXAMPLES, ids=[e[1] for e in EXAMPLES])
def test_an_example_is_read(tmp_path, ending, name, text):
    path = tmp_path / f"example.{ending}"
    path.write_text(text, encoding="utf-8")
    items = list(read_comparisons(SourceConfig(path=path, format=name)))
    assert items
    assert all(item.votes for item in items)


def test_every_metric_that_a_gate_may_name_is_explained():
    habits = {f"data/style/{habit}" for habit in STYLES}
    assert habits == {name for name in DATA_METRICS if name.startswith("data/style/")}
    for name in set(DATA_METRICS) - habits:
        assert name in PAGE, name


def test_every_reason_and_habit_is_explained():
    for reason in typing.get_args(Reason):
        assert f"`{reason}`" in PAGE, reason
    for habit in STYLES:
        assert habit in PAGE, habit
