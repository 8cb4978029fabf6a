from datetime import UTC, datetime, timedelta

import pytest

from rlhf_core.adapters.registry.approval import ask_approval, record_approval, require_approval
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import RegistryError

URI = "models:/rlhf-policy/1"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def say(decision, comment="good", reviewer="the reviewer", said_at=NOON):
    return record_approval(URI, decision, reviewer=reviewer, comment=comment, said_at=said_at)


@pytest.fixture
def version(mlflow_home):
    """A version that nobody has said anything about."""
    client = mlflow_client()
    client.create_registered_model("rlhf-policy")
    client.create_model_version("rlhf-policy", source=str(mlflow_home))
    return lambda: client.get_model_version("rlhf-policy", "1").tags


def test_where_a_person_is_asked_for_silence_is_no_approval(version):
    with pytest.raises(RegistryError, match="nobody has approved it"):
        require_approval(URI, asked_for=True)
    require_approval(URI, asked_for=False)


@pytest.mark.parametrize("asked_for", [True, False])
@pytest.mark.parametrize("decision", ["HOLD", "REJECT"])
def test_a_refusal_sticks_whoever_asks_again(version, decision, asked_for):
    say(decision, "too terse")
    with pytest.raises(RegistryError, match=f"the reviewer said {decision}: too terse"):
        require_approval(URI, asked_for=asked_for)


def test_what_was_said_before_does_not_count_while_somebody_is_asked_again(version):
    say("PROMOTE")
    require_approval(URI, asked_for=True)
    ask_approval(URI)
    with pytest.raises(RegistryError, match="nobody has answered yet"):
        require_approval(URI, asked_for=True)


def test_the_answer_is_kept_with_the_version(version):
    say("PROMOTE")
    tags = version()
    assert tags["rlhf.approval"] == "PROMOTE"
    assert tags["rlhf.approved_by"] == "the reviewer"
    assert tags["rlhf.approval_comment"] == "good"
    assert tags["rlhf.approval_time"] == "2026-01-31T12:00:00+00:00"


def test_an_answer_read_again_does_not_undo_what_was_said_after_it(version):
    say("PROMOTE", reviewer="first")
    say("REJECT", "it lies", reviewer="second", said_at=NOON + timedelta(hours=1))
    assert say("PROMOTE", reviewer="first") == ("REJECT", "REJECT by second: it lies")
    assert version()["rlhf.approved_by"] == "second"
    assert say("PROMOTE", said_at=NOON + timedelta(hours=2))[0] == "PROMOTE"


def test_the_time_limit_counts_only_while_nobody_has_said_anything(version):
    ask_approval(URI)
    assert say("HOLD", "too late", "time limit", None) == ("HOLD", "HOLD by time limit: too late")
    ask_approval(URI)
    say("PROMOTE")
    assert say("HOLD", "too late", "time limit", None)[0] == "PROMOTE"
    assert version()["rlhf.approved_by"] == "the reviewer"


def test_asking_again_leaves_an_approved_champion_approved(version):
    say("PROMOTE")
    mlflow_client().set_registered_model_alias("rlhf-policy", "champion", "1")
    ask_approval(URI)
    assert version()["rlhf.approval"] == "PROMOTE"
    say("REJECT", said_at=NOON + timedelta(hours=1))
    ask_approval(URI)
    assert version()["rlhf.approval"] == "ASKED"


def test_a_word_is_one_persons_though_another_spoke_since_the_tags_were_read(version):
    say("PROMOTE", reviewer="first")
    read = version()
    say("REJECT", "it lies", reviewer="second", said_at=NOON + timedelta(hours=1))
    record_approval(
        URI, "PROMOTE", reviewer="first", comment="good", tags=read,
        said_at=NOON + timedelta(hours=2),
    )  # fmt: skip
    tags = version()
    said = [tags[f"rlhf.{name}"] for name in ("approval", "approved_by", "approval_comment")]
    assert said == ["PROMOTE", "first", "good"]


def test_a_clock_that_is_ahead_does_not_outlive_a_refusal(version):
    now = datetime.now(UTC)
    say("PROMOTE", reviewer="laptop", said_at=now + timedelta(hours=1))
    assert say("REJECT", "it lies", said_at=now)[0] == "REJECT"
    with pytest.raises(RegistryError, match="it lies"):
        require_approval(URI, asked_for=False)
