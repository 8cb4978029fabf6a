"""A thousand damaged configurations: each is settings, or one line that names its file."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_core.config import PipelineConfig, load_config
from rlhf_core.errors import ConfigError

pytestmark = pytest.mark.nightly

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MANY = settings(
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = """010 1:30 0o17 1_000 0x1F yes off true ~ .inf -.inf .nan 1e999 2024-02-30 2024-13-01
2024-01-01T25:00:00Z !!binary=x !!python/name:os.system &a *a <<:*a {} [] [[[]]] '' "\\0" "\\ud800"
!!set{a} !!omap[] ? : - | > %YAML --- ... @ ` 9e9999 -0 0 -1 1 a/b ../.. /dev/null"""
LONG = ["9" * 5_000, "[" * 2_000, "{a: " * 500, "x" * 100_000]
WRITTEN = st.sampled_from([*SCALARS.split(), *LONG, "\x00", "\x1b[31m", "2024-02-30 12:00:00"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: object, path: tuple = ()):
    """Every place in a mapping and all that lies below it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@st.composite
def trees(draw) -> str:
    """A shipped configuration with one to three values of another kind."""
    raw = yaml.safe_load(draw(st.sampled_from(CONFIGS)).read_text())
    raw.pop("extends", None)
    for _ in range(draw(st.integers(1, 3))):
        *parents, leaf = draw(st.sampled_from(list(places(raw)) or [("seed",)]))
        place = raw
        for key in parents:
            place = place[key]
        place[leaf] = draw(ANYTHING)
    return yaml.safe_dump(raw)


@st.composite
def texts(draw) -> str:
    """A shipped configuration with lines repeated, lost, moved or written as nobody should."""
    lines = draw(st.sampled_from(CONFIGS)).read_text().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[at].partition(":")
        change = draw(st.sampled_from(["value", "repeat", "drop", "indent", "insert"]))
        if change == "value":
            lines[at] = f"{key}{colon or ':'} {draw(WRITTEN)}"
        elif change == "repeat":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif change == "indent":
            lines[at] = draw(st.sampled_from(["  ", "\t", "- ", "? "])) + lines[at]
        elif change == "insert":
            lines.insert(at, draw(WRITTEN | st.text(max_size=30)))
        elif len(lines) > 1:
            del lines[at]
    return "\n".join(lines)


def refusal(path: Path, changes: dict[str, str]) -> str | None:
    """The one line that is said about settings that cannot be used."""
    try:
        assert isinstance(load_config(path, changes), PipelineConfig)
    except ConfigError as error:
        return str(error)
    return None


@MANY
@given(text=trees() | texts() | st.text(max_size=200))
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    path = tmp_path / "damaged.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    if said := refusal(path, {}):
        assert str(path) in said
        assert len(said) < 5_000, said[:5_000]


@MANY
@given(
    key=st.sampled_from(["seed", "policy.kl_coef", "data.gates", "model.base"]) | st.text(),
    value=WRITTEN | st.text(),
)
def test_a_damaged_change_is_one_line(key, value):
    said = refusal(CONFIGS[-1], {key: value})
    assert len(said or "") < 5_000, said[:5_000]
