"""People's votes on an evaluation's answers, from the collection to the decision."""

import json

import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import FeedbackConfig
from rlhf_core.errors import DataError
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.feedback.collection import ORIGINS, PAIRS, Origin
from rlhf_core.schema import Comparison
from rlhf_core.stages.evaluate import evaluate_policy
from rlhf_core.stages.labels import pull as label_pull
from rlhf_core.stages.labels.evaluated import collect_evaluated
from rlhf_core.stages.labels.pull import pull_labels
from rlhf_core.storage.records import read_records

pytestmark = pytest.mark.xdist_group("evaluated")

RUN = "20260101-000000-abcd"
METRIC = "policy/win_rate_corrected"
GATE = {"policy": [{"metric": METRIC, "at_least": 0.3, "min_samples": 10}]}


@pytest.fixture
def asked(stage_config, tmp_path):
    """Settings whose only policy gate is about people's votes."""
    labeler = {"kind": "simulated", "annotators": "house:votes"}
    feedback = FeedbackConfig(output=tmp_path / "collected", labeler=labeler)
    return stage_config(**GATE).model_copy(update={"feedback": feedback})


@pytest.fixture
def evaluate(proven_models, asked, small_splits, stage_context):
    """Evaluate the policy, as often as wanted; the judge has passed its gates."""
    return lambda config=asked: evaluate_policy(
        config, small_splits, context=stage_context, champion=None, **proven_models
    )


def votes_for(folder, policy, *, people=("ann", "bob"), size=None, lost=0):
    """Let people vote by a file: for the policy's answer, but for the last ``lost`` pairs."""
    pairs = read_records(folder / PAIRS, Comparison)[:size]
    origins = {row.comparison_id: row for row in read_records(folder / ORIGINS, Origin)}
    lines = []
    for index, pair in enumerate(pairs):
        side = "a" if origins[pair.comparison_id].model_a == policy else "b"
        other = {"a": "b", "b": "a"}[side]
        winner = other if index >= len(pairs) - lost else side
        lines += [
            {"pair": pair.comparison_id, "annotator": name, "winner": winner} for name in people
        ]
    path = folder.parent / "votes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_votes_turn_a_hold_into_a_decision_and_never_train(asked, evaluate, monkeypatch):
    monkeypatch.setattr(label_pull, "publish", lambda *_a, **_k: pytest.fail("published"))
    first = evaluate()
    assert first.decision.verdict == "HOLD"
    assert "rlhf collect CONFIG --evaluation RUN" in first.decision.reasons[0]
    assert METRIC not in first.report.metrics
    found = collect_evaluated(asked, RUN, first, pairs=12)
    file = votes_for(found.folder, first.model.uri)
    with pytest.raises(DataError, match="train nothing; leave --output out"):
        pull_labels(asked, found.folder.name, votes=file, output=found.folder / "out.jsonl")
    pulled = pull_labels(asked, found.folder.name, votes=file)
    assert (pulled.evaluation, pulled.kept, pulled.published) == (RUN, 12, None)
    assert not list((found.folder / "published").glob("*"))

    second = evaluate()
    estimate = second.report.metrics[METRIC]
    alike = found.collection.counts.indistinct
    assert estimate.value == pytest.approx((12 - alike / 2) / 12)
    assert (estimate.num_samples, estimate.confidence) == (12, 0.95)
    assert (second.report.people.votes, second.report.people.by) == (
        2 * (12 - alike),
        ("ann", "bob"),
    )
    assert second.decision.verdict == "PROMOTE"
    assert "votes by 2 annotators on 12 pairs" in second.decision.reasons[-1]
    others = {name: one for name, one in second.report.metrics.items() if name != METRIC}
    assert others == first.report.metrics
    tags = mlflow_client().get_model_version("rlhf-policy", "1").tags
    logged = mlflow_client().get_run(tags["rlhf.verdict_run"]).data.metrics
    assert logged[METRIC] == estimate.value
    kept = mlflow_client().list_artifacts(
        mlflow_client().get_model_version("rlhf-looks", "1").tags["rlhf.measured_by"], "votes"
    )
    assert len(kept) == 1
    other = evaluate(asked.model_copy(update={"seed": 7}))
    assert other.report.people == second.report.people
    assert other.report.metrics[METRIC].value == estimate.value


def test_more_votes_make_a_decision_that_has_to_be_surer(asked, evaluate):
    first = evaluate()
    small = collect_evaluated(asked, RUN, first, pairs=10)
    pull_labels(asked, str(small.folder), votes=votes_for(small.folder, first.model.uri, size=2))
    few = evaluate()
    assert METRIC not in few.report.metrics
    there = few.report.people.pairs
    assert 2 < there < 10
    assert f"votes on {there} pairs, expected at least 10" in few.decision.reasons[0]
    pull_labels(asked, str(small.folder), votes=votes_for(small.folder, first.model.uri))
    wanted = collect_evaluated(asked, RUN, first, half_width=0.36).collection.evaluation
    second = evaluate()
    assert second.report.people.round == 1
    more = collect_evaluated(asked, RUN, second, half_width=0.36).collection.evaluation
    assert (wanted.drawn, more.drawn) == (10, 12), "the second decision has to be surer"
    assert evaluate().report.metrics[METRIC] == second.report.metrics[METRIC]
    large = collect_evaluated(asked, RUN, first, pairs=12)
    pull_labels(asked, str(large.folder), votes=votes_for(large.folder, first.model.uri, lost=1))
    third = evaluate()
    assert third.report.people.round == 2
    assert third.report.metrics[METRIC].confidence == pytest.approx(1 - 0.05 / 6)
    gate = third.decision.results[0]
    assert "99.1667%" in gate.rule
    assert "decision 2 with votes on these answers" in third.decision.reasons[-1]


def test_the_draw_is_random_nested_and_the_same_for_a_seed(asked, evaluate, stage_config):
    first = evaluate()
    rows = read_records(first.report.samples, ComparedAnswer)
    found = {n: collect_evaluated(asked, RUN, first, pairs=n) for n in (10, 12)}
    assert collect_evaluated(asked, RUN, first, pairs=10).collection == found[10].collection
    prompts = {
        n: [one.prompt_id for one in read_records(at.folder / ORIGINS, Origin)]
        for n, at in found.items()
    }
    assert prompts[12][: len(prompts[10])] == prompts[10]
    assert prompts[12] != sorted(prompts[12], key=[row.prompt_id for row in rows].index)
    sides = {one.model_a for one in read_records(found[12].folder / ORIGINS, Origin)}
    assert sides == {"models:/rlhf-policy/1", "models:/rlhf-sft/1"}
    about = found[12].collection.evaluation
    assert (about.judged, about.needed, about.look) == (12, None, "models:/rlhf-looks/1")
    assert about.accuracy is not None
    wide = collect_evaluated(asked, RUN, first, half_width=0.35).collection.evaluation
    assert wide.needed == wide.drawn == 11
    # A further look has to be surer, so it takes more votes for an interval as narrow.
    again = first.report.look.model_copy(update={"number": 2})
    later = first.model_copy(update={"report": first.report.model_copy(update={"look": again})})
    assert collect_evaluated(asked, RUN, later, half_width=0.35).collection.evaluation.drawn == 12
    surer = stage_config(policy=[{**GATE["policy"][0], "confidence": 0.96}])
    surer = surer.model_copy(update={"feedback": asked.feedback})
    found = collect_evaluated(surer, RUN, first, half_width=0.35).collection.evaluation
    assert found.drawn == 12, "the gate reads an interval at a level of its own"
    for number in (9, 13):
        with pytest.raises(DataError, match="expected --pairs from 10 to 12"):
            collect_evaluated(asked, RUN, first, pairs=number)
