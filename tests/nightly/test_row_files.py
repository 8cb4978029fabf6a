"""A thousand damaged row files of each format: records, rows filtered out, or one clear line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataprep.test_any_input import ROWS, damaged, outcome, require_sound

pytestmark = pytest.mark.nightly

MANY = settings(
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WRITTEN = st.sampled_from(
    ["NaN", "1e999", "9" * 5_000, '"\\u0000"', '"\\ud800"', '"2024-02-30"', "", "\x00",
     "2024-02-30", "[" * 3_000, '{"a":' * 500, "'", "tru", "0x1F", "01", '"\\x"', "\ufeff{}"]
)  # fmt: skip


@pytest.mark.parametrize("file_format", ROWS)
@MANY
@given(data=st.data())
def test_no_row_ends_in_a_traceback(tmp_path, file_format, data):
    path = tmp_path / "any.jsonl"
    line = json.dumps(data.draw(damaged(file_format)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(line)))
        length = data.draw(st.integers(0, 12))
        line = line[:at] + data.draw(WRITTEN) + line[at + length :]
    path.write_bytes(line.replace("\n", " ").encode("utf-8", "surrogatepass") + b"\n")
    items, message = outcome(path, file_format)
    if items or message:  # a line that became blank is no row
        require_sound(path, items, message)
