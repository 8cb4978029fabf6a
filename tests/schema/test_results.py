"""What a stage returns, as it is written and read again."""

import json
from pathlib import Path

import pytest

from rlhf_core.errors import MissingMetricError
from rlhf_core.schema import Look, ModelRef, StageResult, share_of_round

MODEL = ModelRef(name="rlhf-policy", version="1", uri="models:/rlhf-policy/1", path=Path("model"),
                 sha256="0" * 64, kind="causal", run_id="r")  # fmt: skip
LATER = StageResult.judged_later("policy", MODEL, seconds=2.0, tracking_url="")


def test_a_model_that_is_judged_later_has_no_verdict_yet():
    assert LATER.verdict is None
    with pytest.raises(MissingMetricError, match="policy has no verdict, its model is judged la"):
        _ = LATER.judgement
    assert StageResult.model_validate_json(LATER.model_dump_json()) == LATER


def test_the_verdict_that_earlier_builds_wrote_without_judging_is_none():
    written = json.loads(LATER.model_dump_json()) | {
        "decision": {
            **{"stage": "policy", "model": MODEL.model_dump(mode="json"), "verdict": "PROMOTE"},
            **{"results": [], "reasons": ["its gates are those of the evaluation"]},
        }
    }
    assert StageResult.model_validate_json(json.dumps(written)) == LATER


def test_a_model_alone_is_what_still_earlier_builds_wrote():
    found = StageResult.model_validate_json(MODEL.model_dump_json())
    assert (found.model, found.verdict) == (MODEL, None)


def test_all_decisions_at_all_looks_err_no_more_often_than_the_gate_says():
    """The first look makes a half of the error, and so does each decision at it at most."""
    looks = sum(Look(entry="e", held_out="h", number=k).share for k in range(1, 3_000))
    rounds = sum(share_of_round(number) for number in range(1, 3_000))
    assert looks / 2 == pytest.approx(3 / 4, abs=1e-3)
    assert looks * rounds / 2 == pytest.approx(1.0, abs=1e-3)
    assert looks * rounds / 2 <= 1.0
