import pytest

from rlhf_core.adapters.registry.approval import require_approval
from rlhf_core.adapters.registry.decision import record_decision
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.errors import RegistryError
from rlhf_core.evaluation.gates import decide
from rlhf_core.models.files import weights_sha256
from rlhf_core.schema import Estimate, EvaluationReport, StageResult
from rlhf_core.stages import promote
from rlhf_core.stages.promote import bar_for, promote_model, promote_policy
from rlhf_core.stages.rollback import rollback_policy
from tests.registries import copy_registry, registry_in
from tests.releases import champions
from tests.stages.conftest import context_in, lenient_config, register_models, splits_in

pytestmark = pytest.mark.xdist_group("evaluated")

WON = Estimate(value=0.7, low=0.65, high=0.75, num_samples=300)
PASSED = {"policy": [{"metric": "policy/win_rate", "at_least": 0.6}]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Model folders of a pipeline run, by role; their weights are the run's name."""

    def make(run_id):
        folders = {}
        for role in ("sft", "reward", "judge", "policy"):
            folder = tmp_path_factory.mktemp(f"{run_id}-{role}")
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(folder.name.encode())
            folders[role] = (folder, weights_sha256(folder))
        return folders

    return make


def judge(models, context, gates=PASSED):
    """Write PROMOTE for the upstream models and what ``gates`` say for the policy."""
    config = lenient_config(**gates)
    for role, model in models.items():
        estimates = {"policy/win_rate": WON} if role == "policy" else {f"{role}/x": WON}
        champion = bar_for(model, "rlhf") if role == "policy" else None
        report = EvaluationReport(stage=role, model=model, metrics=estimates, champion=champion)
        asked = config.gates.policy if role == "policy" else ()
        decision = decide(asked, report)
        if role != "policy":
            decision = decision.model_copy(update={"verdict": "PROMOTE"})
        with open_run(config, context, "evaluate", inputs={"model": model.uri}) as run:
            upstream = {"judge": models["judge"]} if role == "policy" else {}
            record_decision(decision, report, run=run, upstream=upstream)
    return StageResult(
        stage="evaluate", model=model, report=report, decision=decision, seconds=1.0,
        tracking_url=run.url,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first_registered(tmp_path_factory, fresh_database, weights):
    """A working directory with the models of the first run in its registry; the models."""
    home = tmp_path_factory.mktemp("registered")
    with registry_in(home, fresh_database):
        splits, context = splits_in(home / "prepared"), context_in(home, "first")
        return home, register_models(weights("first"), context, splits)


@pytest.fixture(scope="module")
def first_judged(tmp_path_factory, fresh_database, first_registered):
    """One in which they are judged as well; the result."""
    home, (before, models) = tmp_path_factory.mktemp("judged"), first_registered
    with registry_in(home, fresh_database):
        copy_registry(before, home)
        return home, judge(models, context_in(home))


@pytest.fixture
def release(register_all, mlflow_home, first_registered, weights):
    """Find all four models of a pipeline run registered; those of the first are a copy."""

    def make(run_id="first"):
        if run_id != "first":
            return register_all(weights(run_id), run_id)
        home, models = first_registered
        copy_registry(home, mlflow_home)
        return models

    return make


@pytest.fixture
def judge_all(stage_context):
    return lambda models, gates=PASSED: judge(models, stage_context, gates)


@pytest.fixture
def passed(mlflow_home, first_judged, first_registered):
    """The models of the first run, and the result of judging them: all are past their gates."""
    home, result = first_judged
    copy_registry(home, mlflow_home)
    return first_registered[1], result


def test_promote_makes_the_policy_and_what_it_was_made_with_champions(
    passed, stage_config, stage_context
):
    promotion = promote_policy(stage_config(), passed[1], stage_context)
    assert promotion.moved
    assert promotion.champion == "models:/rlhf-policy/1"
    assert promotion.previous_champion is None
    for role in ("policy", "sft", "judge"):
        assert champions(mlflow_client())[role] == f"models:/rlhf-{role}/1"


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({"at_least": 0.7}, "HOLD"),
        ({"at_least": 0.9}, "REJECT"),
        ({"at_least": 0.6, "min_samples": 301}, "HOLD"),
        (None, "HOLD"),
    ],
)
def test_anything_but_promote_moves_nothing(
    release, judge_all, stage_config, stage_context, gate, verdict
):
    gates = [{"metric": "policy/win_rate", **gate}] if gate else []
    result = judge_all(release(), {"policy": gates})
    promotion = promote_policy(stage_config(), result, stage_context)
    assert (promotion.verdict, promotion.moved, promotion.champion) == (verdict, False, None)
    assert promotion.reasons == result.decision.reasons
    for role in ("policy", "sft", "judge"):
        assert role not in champions(mlflow_client())


def test_a_later_evaluation_overtakes_an_earlier_decision(
    passed, judge_all, stage_config, stage_context
):
    models, early = passed
    judge_all(models, {"policy": []})
    with pytest.raises(RegistryError, match="said PROMOTE, the registry now says HOLD"):
        promote_policy(stage_config(), early, stage_context)
    assert champions(mlflow_client()) == {}


def test_a_decision_about_other_weights_moves_nothing(passed, stage_config, stage_context):
    _, result = passed
    other = result.model.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RegistryError, match="evaluated weights 000000000000"):
        promote_policy(stage_config(), result.model_copy(update={"model": other}), stage_context)


def test_a_model_of_another_project_is_refused(passed, stage_config, stage_context):
    other = stage_config().model_copy(update={"project": "other"})
    with pytest.raises(RegistryError, match="not a version of other-policy"):
        promote_policy(other, passed[1], stage_context)


def test_a_model_no_gate_has_seen_cannot_be_promoted(release):
    release()
    with pytest.raises(RegistryError, match="has no verdict"):
        promote_model("models:/rlhf-policy@candidate")


def test_a_policy_whose_sft_model_failed_its_gate_since_is_refused(
    passed, stage_config, stage_context
):
    models, result = passed
    report = EvaluationReport(stage="sft", model=models["sft"], metrics={"sft/x": WON})
    with open_run(stage_config(), stage_context, "evaluate", inputs={"again": "1"}) as run:
        record_decision(decide((), report), report, run=run)
    with pytest.raises(RegistryError, match="its sft models:/rlhf-sft/1 has verdict HOLD"):
        promote_policy(stage_config(), result, stage_context)
    for role in ("policy", "sft", "judge"):
        assert role not in champions(mlflow_client())


def test_promoting_again_changes_nothing_and_rollback_needs_somewhere_to_go(
    passed, stage_config, stage_context
):
    first = promote_policy(stage_config(), passed[1], stage_context)
    again = promote_model("models:/rlhf-policy/1")
    assert again == first.model_copy(update={"moved": False})
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback_policy("rlhf")


def test_an_approval_by_hand_is_recorded_before_champion_moves(passed, monkeypatch):
    models, _ = passed
    uri = models["policy"].uri

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promote, "record_move", killed)
        with pytest.raises(KeyboardInterrupt):
            promote_model("models:/rlhf-policy@candidate", reviewer="Ann", comment="reads well")
    require_approval(uri, asked_for=True)
    assert promote_model(uri, reviewer="Ann").moved


def test_what_the_gates_refused_is_not_approved_by_hand(release, judge_all):
    models = release()
    judge_all(models, {"policy": []})
    assert promote_model(models["policy"].uri, reviewer="Ann").verdict == "HOLD"
    with pytest.raises(RegistryError, match="nobody has approved it"):
        require_approval(models["policy"].uri, asked_for=True)


def test_rollback_brings_back_the_whole_release(
    passed, release, judge_all, stage_config, stage_context
):
    promote_policy(stage_config(), passed[1], stage_context)
    second = promote_policy(stage_config(), judge_all(release("second")), stage_context)
    assert second.champion == "models:/rlhf-policy/2"
    assert second.previous_champion == "models:/rlhf-policy/1"
    assert champions(mlflow_client())["sft"] == "models:/rlhf-sft/2"
    back = rollback_policy("rlhf")
    assert (back.was, back.champion) == ("models:/rlhf-policy/2", "models:/rlhf-policy/1")
    assert back.previous_champion is None
    for role in ("sft", "judge"):
        assert champions(mlflow_client())[role] == f"models:/rlhf-{role}/1"


def test_a_candidate_compared_with_another_champion_has_to_be_evaluated_again(
    passed, release, judge_all, stage_config, stage_context
):
    """An approval may take days; meanwhile another model may have become champion."""
    (early, early_result), late = passed, release("second")
    promote_policy(stage_config(), judge_all(late), stage_context)
    with pytest.raises(
        RegistryError, match=r"compared with champion none, .* is now models:/rlhf-poli"
    ):
        promote_policy(stage_config(), early_result, stage_context)
    assert champions(mlflow_client())["policy"] == late["policy"].uri
    assert promote_policy(stage_config(), judge_all(early), stage_context).moved


def test_the_champion_itself_is_held_to_the_one_before_it(
    passed, release, judge_all, stage_config, stage_context
):
    """A retry of a run that has promoted must not compare the champion with itself."""
    (first, result), second = passed, release("second")
    assert bar_for(first["policy"], "rlhf") is None
    promote_policy(stage_config(), result, stage_context)
    assert bar_for(first["policy"], "rlhf") is None
    assert bar_for(second["policy"], "rlhf") == first["policy"].uri
    promote_policy(stage_config(), judge_all(second), stage_context)
    assert bar_for(second["policy"], "rlhf") == first["policy"].uri


def test_a_candidate_of_an_earlier_build_has_to_be_compared_with_the_champion(
    passed, release, judge_all, stage_config, stage_context
):
    (first, result), second = passed, release("second")
    promote_policy(stage_config(), result, stage_context)
    result = judge_all(second)
    mlflow_client().delete_model_version_tag("rlhf-policy", "2", "rlhf.compared_with_champion")
    with pytest.raises(RegistryError, match=r"champion none, by an earlier build, and the champio"):
        promote_policy(stage_config(), result, stage_context)
    assert champions(mlflow_client())["policy"] == first["policy"].uri


def test_a_bar_that_was_deleted_is_none(passed, release, judge_all, stage_config, stage_context):
    promote_policy(stage_config(), passed[1], stage_context)
    second = release("second")
    promote_policy(stage_config(), judge_all(second), stage_context)
    mlflow_client().delete_model_version("rlhf-policy", "1")
    assert bar_for(second["policy"], "rlhf") is None
