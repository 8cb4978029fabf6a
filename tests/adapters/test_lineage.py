from datetime import UTC, datetime, timedelta

import pytest

from rlhf_core.adapters.registry.decision import record_decision
from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.registry.registry import register_model
from rlhf_core.adapters.tracking.curves import read_curves, run_span
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs
from rlhf_core.errors import RegistryError
from rlhf_core.schema import Estimate, EvaluationReport, GateResult, PromotionDecision

WON = Estimate(value=0.7, low=0.65, high=0.75, num_samples=300)


@pytest.fixture
def chain(mlflow_home, config, context, splits, model_folder):
    """SFT, a reward model made from it, a policy made from both, a judge that passed it."""
    models = {}
    for role, upstream in {
        "sft": (), "reward": ("sft",), "judge": ("sft",), "policy": ("sft", "reward"),
    }.items():  # fmt: skip
        folder, sha256 = model_folder(role.encode(), name=f"model-{role}")
        inputs = stage_inputs(splits, **{name: models[name] for name in upstream})
        with open_run(config, context, role, inputs=inputs) as run:
            models[role] = register_model(
                run, directory=folder, name=f"rlhf-{role}", kind="causal", sha256=sha256, tags={}
            )
    result = GateResult(
        gate="policy/win_rate", verdict="PROMOTE", estimate=WON, rule="r", reason="it won"
    )
    decision = PromotionDecision(
        stage="policy", model=models["policy"], verdict="PROMOTE", results=(result,),
        reasons=("it won",),
    )  # fmt: skip
    report = EvaluationReport(
        stage="policy", model=models["policy"], metrics={"policy/win_rate": WON}
    )
    with open_run(config, context, "evaluate", inputs={}) as run:
        record_decision(decision, report, run=run, upstream={"judge": models["judge"]})
    return models


def test_one_answer_goes_from_the_alias_to_the_dataset(chain, context, splits):
    mlflow_client().set_registered_model_alias("rlhf-policy", "champion", "1")
    lineage = trace_lineage("models:/rlhf-policy@champion")
    assert lineage.model == "models:/rlhf-policy/1"
    assert lineage.aliases == ("candidate", "champion")
    assert lineage.pipeline_run == context.run_id
    assert (lineage.stage, lineage.run_status) == ("policy", "FINISHED")
    assert chain["policy"].run_id in lineage.tracking_url
    assert lineage.sha256 == chain["policy"].sha256
    assert lineage.dataset_sha256 == splits.sha256
    assert lineage.dataset_dvc_md5 == splits.dvc_md5
    assert lineage.verdict == "PROMOTE"
    assert lineage.gates == {"policy/win_rate": "PROMOTE: it won"}
    assert lineage.reasons == ("it won",)
    assert sorted(lineage.upstream) == ["judge", "reward", "sft"]
    reward = lineage.upstream["reward"]
    assert reward.upstream["sft"].sha256 == chain["sft"].sha256
    assert reward.verdict == ""


def test_an_answer_survives_json(chain):
    lineage = trace_lineage("models:/rlhf-policy/1")
    assert type(lineage).model_validate_json(lineage.model_dump_json()) == lineage


def test_an_unknown_model_is_told_in_one_line(mlflow_home):
    with pytest.raises(RegistryError, match="no model 'rlhf-policy' is registered yet"):
        trace_lineage("models:/rlhf-policy@champion")


def test_curves_come_back_in_order_and_single_points_are_no_curve(mlflow_home, config, context):
    with open_run(config, context, "sft", inputs={}) as run:
        for step in (2, 0, 1):
            run.log_metrics({"sft/loss": float(-step)}, step)
        run.log_metrics({"sft/once": 1.0}, step=0)
    curves = read_curves(run.run_id, ["sft/loss", "sft/once", "sft/never"])
    assert curves == {"sft/loss": ((0, 1, 2), (0.0, -1.0, -2.0))}


def test_a_run_says_when_it_ended_and_how_long_it_took(mlflow_home, config, context):
    client, before = mlflow_client(), datetime.now(UTC) - timedelta(seconds=1)
    with open_run(config, context, "evaluate", inputs={}) as run:
        run_id = run.run_id
        began, running = run_span(run_id)
    info = client.get_run(run_id).info
    ended, took = run_span(run_id)
    assert before <= began <= ended <= datetime.now(UTC)
    assert running == timedelta()
    assert took == timedelta(milliseconds=info.end_time - info.start_time)
    with pytest.raises(RegistryError):
        run_span("0" * 32)


def test_a_model_that_was_deleted_is_a_leaf_and_the_rest_is_still_told(chain):
    client = mlflow_client()
    client.set_registered_model_alias("rlhf-policy", "champion", "1")
    client.delete_registered_model("rlhf-sft")
    lineage = trace_lineage("models:/rlhf-policy@champion")
    assert "models:/rlhf-sft/1" in lineage.lost["sft"]
    assert sorted(lineage.upstream) == ["judge", "reward"]
    assert "models:/rlhf-sft/1" in lineage.upstream["reward"].lost["sft"]
