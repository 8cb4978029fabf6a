import math

import pytest

from rlhf_core import schema
from rlhf_core.adapters.registry import registry
from rlhf_core.adapters.registry.decision import record_decision, recorded_verdict
from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import look_up_run, open_run
from rlhf_core.errors import ModelError, RegistryError
from rlhf_core.schema import Estimate, EvaluationReport, GateResult, PromotionDecision

NAME = "rlhf-sft"


@pytest.fixture
def made(mlflow_home, config, context, model_folder):
    """Train-free stage: register weights under a run id of their own."""

    def make(weights: bytes = b"weights", run_id: str = "one", name: str = NAME):
        folder, sha256 = model_folder(weights, name=f"model-{run_id}")
        here = context.model_copy(update={"run_id": run_id})
        with open_run(config, here, "sft", inputs={"dataset_sha256": "d" * 64}) as run:
            return register_model(
                run, directory=folder, name=name, kind="causal", sha256=sha256, tags={"note": "x"}
            )

    return make


@pytest.fixture
def judged(config, context):
    """Record a verdict for a model."""

    def judge(model, verdict="PROMOTE"):
        estimate = Estimate(value=1.5, low=1.4, high=1.6, num_samples=200)
        report = EvaluationReport(stage="sft", model=model, metrics={"sft/heldout_nll": estimate})
        result = GateResult(
            gate="sft/heldout_nll", verdict=verdict, estimate=estimate, rule="r", reason="because"
        )
        decision = PromotionDecision(
            stage="sft", model=model, verdict=verdict, results=(result,), reasons=("because",)
        )
        with open_run(config, context, "evaluate", inputs={}) as run:
            record_decision(decision, report, run=run)
        return run

    return judge


def test_a_version_carries_its_weights_lineage_and_the_candidate_alias(made, mlflow_home):
    model = made()
    assert model.uri == "models:/rlhf-sft/1"
    version = mlflow_client().get_model_version(NAME, "1")
    assert version.tags["rlhf.sha256"] == model.sha256
    assert version.tags["rlhf.dataset_sha256"] == "d" * 64
    assert version.tags["rlhf.note"] == "x"
    assert version.tags["rlhf.stage"] == "sft"
    assert version.run_id == model.run_id
    assert version.aliases == ["candidate"]


def test_a_model_is_found_by_version_alias_and_folder(made, mlflow_home):
    made(b"first", "one")
    second = made(b"second", "two")
    cache = mlflow_home / "cache"
    by_version = resolve_model("models:/rlhf-sft/2", cache=cache)
    by_alias = resolve_model("models:/rlhf-sft@candidate", cache=cache)
    assert by_version == by_alias
    assert by_version.sha256 == second.sha256
    assert (by_version.path / "model.safetensors").read_bytes() == b"second"
    assert not cache.exists()  # the store is on this machine, so nothing is copied
    local = resolve_model(str(second.path), cache=cache)
    assert (local.version, local.kind, local.sha256) == ("local", "causal", second.sha256)


def test_a_folder_with_a_scalar_head_is_a_scalar_model(model_folder, tmp_path):
    folder, _ = model_folder(scalar=True)
    assert resolve_model(str(folder), cache=tmp_path).kind == "scalar"


def test_registering_again_after_a_kill_makes_no_second_version(made):
    assert made() == made()
    assert len(mlflow_client().search_model_versions(f"name='{NAME}'")) == 1


def test_the_same_weights_from_another_run_are_a_version_of_their_own(made):
    assert made(run_id="one").version == "1"
    assert made(run_id="two").version == "2"


@pytest.mark.parametrize(
    "killed_at",
    [
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
def test_killed_at_any_call_nothing_half_is_visible_and_a_retry_completes(
    made, mlflow_home, monkeypatch, killed_at
):
    client = mlflow_client()
    real = getattr(client, killed_at)

    def killed_after(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, killed_at, killed_after)
        with pytest.raises(KeyboardInterrupt):
            made()
    for version in client.search_model_versions(f"name='{NAME}'"):
        assert resolve_model(f"models:/{NAME}/{version.version}", cache=mlflow_home).sha256
    model = made()
    assert model.version == "1"
    assert resolve_model(f"models:/{NAME}@candidate", cache=mlflow_home).sha256 == model.sha256
    experiment = client.get_run(model.run_id).info.experiment_id
    assert len(client.search_logged_models([experiment])) == 1


def test_weights_changed_behind_the_registry_are_refused(made, mlflow_home):
    made()
    stored = resolve_model("models:/rlhf-sft/1", cache=mlflow_home)
    (stored.path / "model.safetensors").write_bytes(b"tampered")
    with pytest.raises(RegistryError, match="the files were changed"):
        resolve_model("models:/rlhf-sft/1", cache=mlflow_home)


def test_a_wrong_reference_says_what_there_is(made, mlflow_home):
    with pytest.raises(RegistryError, match="no model 'rlhf-sft' is registered yet at sqlite:///"):
        resolve_model("models:/rlhf-sft@champion", cache=mlflow_home)
    made()
    with pytest.raises(RegistryError, match=r"no champion yet; aliases set: candidate -> 1"):
        resolve_model("models:/rlhf-sft@champion", cache=mlflow_home)
    with pytest.raises(RegistryError, match=r"sft/7: rlhf-sft has no version 7; newest: 1$"):
        resolve_model("models:/rlhf-sft/7", cache=mlflow_home)
    with pytest.raises(RegistryError, match="no model 'nobody' is registered yet"):
        resolve_model("models:/nobody/1", cache=mlflow_home)
    for reference in ("models:/rlhf-sft", "models:/rlhf-sft/1@candidate", "models:/rlhf-sft/one"):
        with pytest.raises(RegistryError, match="expected models:/"):
            resolve_model(reference, cache=mlflow_home)
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model("nowhere/at/all", cache=mlflow_home)


def test_a_verdict_is_written_where_people_look(made, judged):
    model = made()
    run = judged(model, "HOLD")
    version = mlflow_client().get_model_version(NAME, "1")
    assert version.tags["rlhf.verdict"] == "HOLD"
    assert version.tags["rlhf.verdict_reasons"] == "because"
    assert version.tags["rlhf.gate.sft/heldout_nll"] == "HOLD: because"
    logged = mlflow_client().get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in logged.metrics}["sft/heldout_nll/high"] == 1.6
    files = [item.path for item in mlflow_client().list_artifacts(run.run_id, "evaluation")]
    assert files == ["evaluation/decision.json", "evaluation/report.json"]


def test_both_gates_of_a_range_are_written_with_the_version(made, config, context):
    model, name = made(), "sft/heldout_nll"
    estimate = Estimate(value=1.5, low=1.4, high=math.inf, num_samples=200)
    results = tuple(
        GateResult(gate=name, verdict=verdict, estimate=estimate, rule="r", reason=reason)
        for verdict, reason in (("HOLD", "at most 2."), ("PROMOTE", "at least 0.5."))
    )
    report = EvaluationReport(stage="sft", model=model, metrics={name: estimate})
    decision = PromotionDecision(
        stage="sft", model=model, verdict="HOLD", results=results, reasons=("at most 2.",)
    )
    with open_run(config, context, "evaluate", inputs={}) as run:
        record_decision(decision, report, run=run)
    assert trace_lineage(model.uri).gates[name] == "HOLD: at most 2.\nPROMOTE: at least 0.5."
    assert look_up_run(run.run_id)[1][f"{name}/high"] == math.inf  # kept as the largest number


def test_a_new_verdict_replaces_the_old_one_with_all_its_gates(made, judged):
    model = made()
    judged(model, "REJECT")
    mlflow_client().set_model_version_tag(NAME, "1", "rlhf.gate.sft/asked_before", "REJECT: old")
    judged(model, "PROMOTE")
    tags = mlflow_client().get_model_version(NAME, "1").tags
    assert tags["rlhf.verdict"] == "PROMOTE"
    assert "rlhf.gate.sft/asked_before" not in tags
    assert tags["rlhf.gate.sft/heldout_nll"] == "PROMOTE: because"


def test_killed_while_a_verdict_is_written_there_is_none(made, judged, monkeypatch):
    model = made()
    judged(model, "PROMOTE")
    client = mlflow_client()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_model_version_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            judged(model, "REJECT")
    assert recorded_verdict(model.uri) == (None, ("because",))


def test_a_retrained_version_does_not_inherit_a_verdict(made, judged):
    judged(made(b"first", "one"), "PROMOTE")
    assert "rlhf.verdict" not in mlflow_client().get_model_version(
        NAME, made(b"second", "one").version
    ).tags  # fmt: skip


def test_alias_names_are_those_of_the_contract():
    assert (registry.CANDIDATE, schema.CHAMPION, schema.PREVIOUS) == (
        "candidate",
        "champion",
        "previous-champion",
    )
