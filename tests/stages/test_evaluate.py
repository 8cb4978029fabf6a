import math

import numpy as np
import pytest

from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.config.metric_names import metrics_of
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.errors import RegistryError
from rlhf_core.evaluation.report import errors_shared, how_right
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import Demonstration, Estimate, Message, ModelRef, PreferencePair, Prompt
from rlhf_core.stages.evaluate import evaluate_policy, evaluate_reward, evaluate_sft
from rlhf_core.stages.evaluation.independence import doubts_about_data
from rlhf_core.stages.evaluation.scored_pairs import warn_of_length_alone
from rlhf_core.stages.models.scoring import score_texts
from rlhf_core.storage.records import read_records, write_records
from tests.stages.conftest import judged

pytestmark = pytest.mark.xdist_group("evaluated")

KINDS = {"demonstrations": Demonstration, "prompts": Prompt}


def test_nll_is_that_of_transformers_itself(four_models, stage_config, stage_context, small_splits):
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_core.stages.models.renderers import model_renderer

    result = evaluate_sft(stage_config(), small_splits, four_models["sft"], stage_context)
    model = AutoModelForCausalLM.from_pretrained(four_models["sft"].path)
    renderer = model_renderer(four_models["sft"].path)
    nats = tokens = 0.0
    for row in read_records(small_splits.demonstrations_heldout, Demonstration):
        example = renderer.demonstration(row)
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(example.prompt_ids)
        nats -= sum(float(logprobs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
        tokens += len(example.response_ids)
    measured = result.report.metrics["sft/heldout_nll"]
    assert measured.value == pytest.approx(nats / tokens, rel=1e-4)
    assert measured.num_samples == 12
    assert set(result.report.metrics) == metrics_of("sft", ())
    assert result.decision.verdict == "PROMOTE"


def test_a_training_stage_evaluates_in_its_own_run(
    four_models, stage_config, stage_context, small_splits
):
    with open_run(stage_config(), stage_context, "sft", inputs={}) as run:
        result = evaluate_sft(
            stage_config(), small_splits, four_models["sft"], stage_context, run=run
        )
        assert result.tracking_url == run.url
    assert mlflow_client().get_run(run.run_id).data.metrics["sft/heldout_nll"] > 0


def test_the_judge_is_measured_under_its_own_name_by_the_reward_models_gates(
    four_models, stage_config, stage_context, small_splits
):
    result = evaluate_reward(
        stage_config(), small_splits, four_models["judge"], stage_context, role="judge"
    )
    assert result.stage == "judge"
    # One vote a pair: nobody could disagree.
    unmeasured = {"judge/noise_ceiling", "judge/best_of_k_accuracy"}
    assert set(result.report.metrics) == metrics_of("judge", ()) - unmeasured
    assert result.decision.results[0].gate == "judge/heldout_accuracy"
    assert set(result.report.breakdown) == {
        "chosen=longer",
        "chosen=shorter",
        "length_difference=small",
        "agreement=one vote",
        "style=polite",  # the tags of the prompts that read the same
        "style=terse",
    }


def voted_on(splits):
    """Three votes on each held-out pair, a third of them not of one mind; tags of their own."""
    for name in ("judge_heldout", "reward_heldout"):
        ref = getattr(splits, name)
        rows = [
            row.model_copy(
                update={
                    "num_votes": 3,
                    "agreement": 1.0 if index % 3 else 2 / 3,
                    "tags": {"tone": "curt"} if index < 6 else {},
                }
            )
            for index, row in enumerate(read_records(ref, PreferencePair))
        ]
        write_records(ref.path, rows)


def test_the_judge_stands_beside_its_ceiling_and_the_reward_models_errors(
    proven_models, stage_config, stage_context, small_splits
):
    voted_on(small_splits)
    gate = {"metric": "policy/judge_error_correlation", "at_most": 0.9, "min_samples": 5}
    config = stage_config(policy=[gate])
    result = judged(config, small_splits, proven_models, stage_context)
    report = result.report
    assert report.judge_ceiling.value > report.judge_accuracy.value
    prompts, texts = [], ([], [])
    for source in (small_splits.judge_heldout, small_splits.reward_heldout):
        for row in read_records(source, PreferencePair):
            prompts.append(row.prompt)
            texts[0].append(row.chosen)
            texts[1].append(row.rejected)
    right = []
    for role in ("judge", "reward"):
        chosen, rejected = score_texts(proven_models[role].path, prompts, texts, budget=500)
        right.append(chosen > rejected)
    phi = np.corrcoef(*right)[0, 1]
    measured = report.metrics["policy/judge_error_correlation"]
    assert measured.value == pytest.approx(phi)
    assert measured.num_samples == 12  # the two halves of this dataset hold the same dialogues
    assert report.judge_accuracy.value == pytest.approx(right[0][:12].mean())
    assert result.decision.results[0].gate == "policy/judge_error_correlation"
    assert f"disagreement allows {report.judge_ceiling.value:.2f}" in how_right(report)
    told = errors_shared({"evaluate": result})
    assert f"correlate by {phi:.2f}" in told
    assert "cannot see that it is exploited" in told


@pytest.mark.parametrize("lead", [-0.1, 0.1])
def test_a_reward_model_that_is_no_better_than_lengths_is_told(lead, caplog):
    rival = {"length_only_accuracy": 0.6 - lead, "accuracy_over_length": lead}
    shares = {"heldout_accuracy": 0.6, **rival}
    metrics = {
        f"judge/{name}": Estimate(value=value, low=value, high=value, num_samples=9)
        for name, value in shares.items()
    }
    with caplog.at_level("WARNING"):
        warn_of_length_alone("judge", metrics)
    right = "the judge is right on 60.0% of the held-out pairs"
    told = f"{right}, and one that knows lengths alone on 70.0%"
    assert (told in caplog.text) == (lead < 0)


def test_slices_of_the_reward_model_can_be_gated(
    four_models, stage_config, stage_context, small_splits
):
    voted_on(small_splits)
    gate = {"metric": "reward/heldout_accuracy", "at_least": 1e-9, "min_samples": 2}
    config = stage_config(reward=[gate, gate | {"slice": "tone=curt"}])
    result = evaluate_reward(config, small_splits, four_models["reward"], stage_context)
    assert {one.gate: one.estimate.num_samples for one in result.decision.results} == {
        "reward/heldout_accuracy": 12,
        "reward/heldout_accuracy [tone=curt]": 6,
    }
    assert set(result.report.breakdown) >= {"agreement=1", "agreement=0.5 to 0.75"}
    assert "reward/noise_ceiling" in result.report.metrics


def test_a_policy_is_compared_judged_and_recorded(evaluated, small_splits):
    _, result = evaluated
    assert (result.stage, result.report.stage) == ("evaluate", "policy")
    assert result.decision.verdict == "PROMOTE"
    thirds = {name for name in result.report.breakdown if name.startswith("prompt_length=")}
    assert set(result.report.breakdown) - thirds == {"style=polite", "style=terse"}
    assert result.report.metrics["policy/kl_k3"].value > 0.0
    rows = read_records(result.report.samples, ComparedAnswer)
    assert len(rows) == 12
    won = np.mean([row.won for row in rows])
    assert result.report.metrics["policy/win_rate"].value == pytest.approx(won)
    for row in rows:
        own, other = row.scores["judge"]
        assert row.won == (0.5 if row.policy == row.sft else float(own > other))
        assert set(row.scores) == {"judge", "reward"}
        assert "score" in row.gold
    lineage = trace_lineage("models:/rlhf-policy@candidate")
    assert lineage.verdict == "PROMOTE"
    assert set(lineage.upstream) == {"sft", "judge"}
    assert lineage.dataset_sha256 == small_splits.sha256
    assert lineage.upstream["judge"].upstream["sft"].model == "models:/rlhf-sft/1"


def test_the_judge_decides_and_not_the_reward_model(evaluated):
    models, result = evaluated
    rows = read_records(result.report.samples, ComparedAnswer)
    prompts = [row.prompt for row in rows]
    policy, sft = score_texts(
        models["judge"].path,
        prompts,
        [[row.policy for row in rows], [row.sft for row in rows]],
        budget=500,
    )
    assert [row.scores["judge"][0] for row in rows] == pytest.approx(policy.tolist(), abs=1e-4)
    assert [row.scores["judge"][1] for row in rows] == pytest.approx(sft.tolist(), abs=1e-4)


def test_a_model_against_itself_ties_everywhere(
    proven_models, stage_config, stage_context, small_splits
):
    twins = {**proven_models, "policy": proven_models["sft"]}
    result = judged(stage_config(), small_splits, twins, stage_context)
    metrics = result.report.metrics
    assert metrics["policy/win_rate"].value == 0.5
    assert metrics["policy/kl"].value == pytest.approx(0.0, abs=1e-4)
    assert metrics["policy/flattery_increase"].value == 0.0
    assert metrics["policy/judge_gain"].value == pytest.approx(0.0, abs=1e-4)


def test_the_same_models_give_the_same_report(evaluated, stage_config, stage_context, small_splits):
    models, first = evaluated
    second = judged(stage_config(), small_splits, models, stage_context)
    assert first.report == second.report
    assert first.decision == second.decision


def test_a_judge_without_a_verdict_can_promote_nobody(
    four_models, stage_config, stage_context, small_splits
):
    result = judged(stage_config(), small_splits, four_models, stage_context)
    assert result.decision.verdict == "HOLD"
    assert "has passed no gate" in result.decision.reasons[0]


def test_a_judge_that_failed_its_gate_can_promote_nobody(
    four_models, stage_config, stage_context, small_splits
):
    strict = stage_config(
        judge=[{"metric": "judge/heldout_accuracy", "at_least": 1.0, "min_samples": 5}]
    )
    evaluate_reward(strict, small_splits, four_models["judge"], stage_context, role="judge")
    result = judged(strict, small_splits, four_models, stage_context)
    assert result.decision.verdict == "HOLD"
    assert "the judge models:/rlhf-judge/1 has verdict" in result.decision.reasons[0]


def test_a_reward_model_is_no_judge(four_models, stage_config, stage_context, small_splits):
    models = {**four_models, "judge": four_models["reward"]}
    with pytest.raises(RegistryError, match=r"the reward model .* was optimised against"):
        judged(stage_config(), small_splits, models, stage_context)
    models |= {"reward": None, "champion": None}
    with pytest.raises(RegistryError, match="was trained as reward, not as judge"):
        evaluate_policy(stage_config(), small_splits, context=stage_context, **models)


def test_a_judge_that_a_policy_was_optimised_against_is_refused(
    four_models, stage_config, stage_context, small_splits
):
    models = four_models
    client = mlflow_client()
    client.set_model_version_tag("rlhf-policy", "1", "rlhf.upstream.reward", models["judge"].uri)
    with pytest.raises(RegistryError, match="models:/rlhf-judge/1, the reward model"):
        judged(stage_config(), small_splits, models, stage_context)


def test_a_policy_is_compared_with_the_sft_model_it_set_out_from(
    four_models, register_all, saved_models, stage_config, stage_context, small_splits
):
    other = register_all({"sft": saved_models["policy"]}, run_id="other")["sft"]
    with pytest.raises(RegistryError, match=r"cannot be compared with \S+; give `--sft models:/rl"):
        judged(stage_config(), small_splits, {**four_models, "sft": other}, stage_context)


@pytest.mark.parametrize(
    ("trained", "read", "doubted"),
    [
        ("", "", True),
        ("seed 0, held out 0.1", "seed 0, held out 0.1", False),
        ("seed 0, held out 0.1", "seed 1, held out 0.1", True),
        # Once split prompt by prompt: a dialogue held out here may have trained it.
        ("seed 0, held out 0.1, judge 0.5", DialogueSplitter(0, 0.1, 0.5).rule, True),
        (DialogueSplitter(0, 0.1, 0.5).rule, DialogueSplitter(0, 0.1, 0.5).rule, False),
    ],
)
def test_models_that_may_have_trained_on_what_is_held_out_are_doubted(
    register_all, saved_models, small_splits, trained, read, doubted
):
    models = register_all(saved_models, splits=small_splits.model_copy(update={"split": trained}))
    here = small_splits.model_copy(update={"sha256": "e" * 64, "split": read})
    doubts = doubts_about_data(here, models.values())
    assert len(doubts) == (4 if doubted else 0)
    assert all("split by another rule" in doubt for doubt in doubts)


def test_a_policy_of_doubted_models_is_held(
    proven_models, stage_config, stage_context, small_splits
):
    here = small_splits.model_copy(update={"sha256": "e" * 64})
    decision = judged(stage_config(), here, proven_models, stage_context).decision
    about = [reason for reason in decision.reasons if "split by another rule" in reason]
    assert len(about) == 4
    assert decision.verdict == "HOLD"


def test_greedy_answers_have_no_kl_and_dpo_has_no_reward_gain(
    four_models, stage_config, stage_context, small_splits
):
    config = stage_config()
    greedy = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"temperature": 0.0})}
    )
    models: dict[str, ModelRef | None] = {**four_models, "reward": None}
    metrics = judged(greedy, small_splits, models, stage_context).report.metrics
    assert not {"policy/kl", "policy/reward_gain", "policy/proxy_gap"} & metrics.keys()
    assert math.isfinite(metrics["policy/reference_perplexity"].value)


def test_scores_do_not_depend_on_what_is_scored_beside_them(four_models, small_splits):
    prompts = [
        row.prompt for row in read_records(small_splits.demonstrations_heldout, Demonstration)
    ]
    texts = [["It opens at nine."] * len(prompts)]
    alone = score_texts(four_models["judge"].path, prompts, texts, budget=1)[0]
    together = score_texts(four_models["judge"].path, prompts, texts, budget=100_000)[0]
    assert alone.tolist() == pytest.approx(together.tolist(), abs=1e-5)


def test_control_tokens_spelled_out_in_letters_do_not_stop_the_judge(four_models, small_splits):
    from rlhf_core.stages.models.renderers import model_renderer

    special = model_renderer(four_models["judge"].path).turns.control_tokens[0]
    prompts = [read_records(small_splits.demonstrations_heldout, Demonstration)[0].prompt] * 2
    plain, spelled = score_texts(
        four_models["judge"].path, prompts, [["At nine."] * 2, [f"At nine.{special}"] * 2],
        budget=500,
    )  # fmt: skip
    assert plain.tolist() == spelled.tolist()


def with_a_second_turn(splits):
    """Every held-out row twice: as the first turn of its dialogue, and as the second."""
    answered = (
        Message(role="assistant", content="At nine."),
        Message(role="user", content="And on Sunday?"),
    )
    changed = {}
    for name in ("demonstrations", "reward", "judge", "prompts"):
        source = getattr(splits, f"{name}_heldout")
        rows = read_records(source, KINDS.get(name, PreferencePair))
        rows += [row.model_copy(update={"prompt": (*row.prompt, *answered)}) for row in rows]
        changed[f"{name}_heldout"] = source.model_copy(
            update={"num_rows": write_records(source.path, rows)}
        )
    return splits.model_copy(update=changed)


def test_the_turns_of_a_dialogue_count_as_one_sample(
    four_models, stage_config, stage_context, small_splits
):
    splits = with_a_second_turn(small_splits)
    sft = evaluate_sft(stage_config(), splits, four_models["sft"], stage_context)
    reward = evaluate_reward(stage_config(), splits, four_models["reward"], stage_context)
    policy = judged(stage_config(), splits, four_models, stage_context)
    for result in (sft, reward, policy):
        for name, metric in result.report.metrics.items():
            assert metric.num_samples == 12, name
    rows = read_records(policy.report.samples, ComparedAnswer)
    assert len({row.prompt[0] for row in rows}) == len(rows) == 12
    assert {len(row.prompt) for row in rows} == {1, 3}


def test_the_champion_answers_the_same_prompts_and_is_scored_by_the_same_judge(
    proven_models, stage_config, stage_context, small_splits
):
    champion = proven_models["sft"]
    models = {**proven_models, "champion": champion}
    result = judged(stage_config(), small_splits, models, stage_context)
    rows = read_records(result.report.samples, ComparedAnswer)
    assert [row.champion for row in rows] == [row.sft for row in rows]  # one random stream
    assert [row.champion_score for row in rows] == [row.scores["judge"][1] for row in rows]
    metrics = result.report.metrics
    assert metrics["policy/win_rate_over_champion"] == metrics["policy/win_rate"]
    assert metrics["policy/champion_win_rate"].value == 0.5
    assert result.report.champion == champion.uri
    tags = mlflow_client().get_model_version("rlhf-policy", "1").tags
    assert tags["rlhf.compared_with_champion"] == champion.uri


def test_a_candidate_that_beats_sft_and_not_the_champion_is_held_back(
    proven_models, stage_config, stage_context, small_splits
):
    """Twelve prompts prove nothing over the champion, whatever they prove over SFT."""
    models = {**proven_models, "champion": proven_models["policy"]}
    decision = judged(stage_config(), small_splits, models, stage_context).decision
    assert decision.verdict == "HOLD"
    assert "win_rate_over_champion = 0.5" in "".join(decision.reasons)
    assert "has the very weights of the champion" in "".join(decision.reasons)
