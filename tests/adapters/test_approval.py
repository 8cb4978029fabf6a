import pytest

from rlhf_core.adapters.approval import ask_approval, record_approval, require_approval
from rlhf_core.adapters.mlflow_client import mlflow_client
from rlhf_core.errors import RegistryError

URI = "models:/rlhf-policy/1"


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
    record_approval(URI, decision, reviewer="the reviewer", comment="too terse")
    with pytest.raises(RegistryError, match=f"the reviewer said {decision}: too terse"):
        require_approval(URI, asked_for=asked_for)


def test_what_was_said_before_does_not_count_while_somebody_is_asked_again(version):
    record_approval(URI, "PROMOTE", reviewer="the reviewer", comment="good")
    require_approval(URI, asked_for=True)
    ask_approval(URI)
    with pytest.raises(RegistryError, match="nobody has answered yet"):
        require_approval(URI, asked_for=True)


def test_the_answer_is_kept_with_the_version(version):
    record_approval(URI, "PROMOTE", reviewer="the reviewer", comment="good")
    tags = version()
    assert tags["rlhf.approval"] == "PROMOTE"
    assert tags["rlhf.approved_by"] == "the reviewer"
    assert tags["rlhf.approval_comment"] == "good"
    assert tags["rlhf.approval_time"]
