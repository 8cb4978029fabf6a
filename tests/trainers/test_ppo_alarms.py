"""PPO's controllers and alarms: KL watch, divergence, penalties, refusals, precision."""

import re

import pytest
import torch

from rlhf_core.config import ComputeConfig, KlWatchConfig, LoraConfig, OptimizerConfig
from rlhf_core.errors import ConfigError, DataError, DivergedError, KlLimitError
from rlhf_core.models import load_causal
from rlhf_core.models.compute import PRECISION
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.ppo import PpoData, fit_ppo
from tests.trainers.ppo_toys import (
    ONE_TRUNK,
    toy_data,
    toy_models,
    toy_settings,
    train_ppo,
)
from tests.trainers.test_fit_ppo import Crash, CrashingTracker, policy_weights
from tests.trainers.toys import EOS, ListObserver, ListTracker


def test_adaptive_controller_moves_the_coefficient_towards_the_target(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        kl_controller="adaptive",
        target_kl=1e6,
        kl_horizon=160,
        kl_coef=0.1,
    )
    torch.testing.assert_close(
        torch.tensor(tracker.series("policy/kl_coef")),
        # The first iteration is the critic's warm-up, where the policy stands still.
        torch.tensor([0.1 * (1 - 0.2 * 16 / 160) ** max(step - 1, 0) for step in range(6)]),
    )


def test_weights_that_are_not_numbers_stop_the_run_and_name_the_iteration(
    causal_directory, tmp_path
):
    models = toy_models(causal_directory)
    with torch.no_grad():
        models.reward_model.score.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match="iteration 0: a reward-model score is not finite"):
        train_ppo(causal_directory, tmp_path, None, models)


def _explosive(rate):
    """Settings refuse such a rate; here it stands for whatever makes weights explode."""
    constant = OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_fraction=0.0)
    return constant.model_copy(update={"learning_rate": rate})


def test_a_policy_that_explodes_in_its_last_step_is_noticed_while_it_samples(
    causal_directory, tmp_path
):
    explosive = _explosive(1e12)
    with pytest.raises(DivergedError, match="sampling token 1: the model's logits are not finite"):
        train_ppo(
            causal_directory,
            tmp_path,
            optimizer=explosive,
            value_learning_rate=1e-3,
            num_epochs=1,
            num_minibatches=1,
        )


def test_a_policy_that_explodes_stops_the_run(causal_directory, tmp_path):
    explosive = _explosive(1e30)
    with pytest.raises(DivergedError, match=r"step \d|iteration \d"):
        train_ppo(causal_directory, tmp_path, optimizer=explosive, value_learning_rate=1e-3)


@pytest.mark.parametrize(
    ("limit", "setting"),
    [
        ({"max_kl_per_token": 1e-3}, "max_kl_per_token 0.001"),
        ({"max_kl_per_token": None, "max_kl_per_response": 0.01}, "max_kl_per_response 0.01"),
    ],
)
def test_kl_watch_stops_the_run(limit, setting, causal_directory, tmp_path):
    watch = KlWatchConfig(action="stop", **limit)
    with pytest.raises(KlLimitError, match=rf"iteration \d: KL .*{setting}"):
        train_ppo(causal_directory, tmp_path, kl_watch=watch)


def test_kl_watch_lowers_the_learning_rate(causal_directory, tmp_path):
    tracker = ListTracker()
    watch = KlWatchConfig(
        max_kl_per_token=1e-3, action="lower_learning_rate", factor=10.0, max_interventions=9
    )
    constant = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)
    train_ppo(causal_directory, tmp_path, tracker, kl_watch=watch, optimizer=constant)
    interventions = tracker.series("policy/kl_interventions")[1:]
    assert interventions[-1] > 0
    torch.testing.assert_close(
        torch.tensor(tracker.series("policy/learning_rate")),
        torch.tensor([1e-2 / 10**count for count in interventions]),
    )


def test_kl_watch_raises_the_coefficient_then_gives_up(causal_directory, tmp_path):
    tracker = ListTracker()
    watch = KlWatchConfig(
        max_kl_per_token=1e-3, action="raise_kl_coef", factor=3.0, max_interventions=2
    )
    with pytest.raises(KlLimitError, match="after 2 interventions"):
        train_ppo(causal_directory, tmp_path, tracker, kl_watch=watch)
    assert tracker.series("policy/kl_coef")[-1] == pytest.approx(0.05 * 9)


def test_kl_watch_rolls_back_to_weights_in_bounds(causal_directory, tmp_path):
    models = toy_models(causal_directory)
    start = policy_weights(models)
    rolled_back = []

    class Watch(ListTracker):
        def log_metrics(self, metrics, step):
            super().log_metrics(metrics, step)
            if "policy/score_mean" not in metrics:  # an iteration without an update
                now = dict(models.policy.named_parameters())
                rolled_back.append(all(torch.equal(now[n], start[n]) for n in start))

    changes = {
        "kl_watch": KlWatchConfig(
            max_kl_per_token=0.02, action="roll_back", factor=2.0, max_interventions=9
        ),
        "checkpoint_every": 100,
        "critic_warmup_iterations": 0,
    }
    tracker = Watch()
    _, _, expected = train_ppo(causal_directory, tmp_path / "a", tracker, models, **changes)
    assert rolled_back
    assert all(rolled_back)
    assert tracker.series("policy/kl_interventions")[-1] == len(rolled_back)
    with pytest.raises(Crash):
        train_ppo(causal_directory, tmp_path / "b", CrashingTracker(5), **changes)
    assert train_ppo(causal_directory, tmp_path / "b", **changes)[2] == expected


SPIKE = re.compile(
    r"kl_spike action=(\w+) kl_per_token=(\S+) kl_per_response=(\S+) limit=(\w+) "
    r"iteration=(\d+) interventions=(\d+)"
)


def spikes(caplog):
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("rlhf_core.trainers")]
    return [SPIKE.fullmatch(line).groups() for line in lines if line.startswith("kl_spike ")]


@pytest.mark.parametrize("action", ["lower_learning_rate", "raise_kl_coef", "roll_back"])
def test_every_intervention_is_one_line_of_the_log_and_told_to_the_observer(
    action, causal_directory, tmp_path, caplog
):
    watch = KlWatchConfig(max_kl_per_token=1e-3, action=action, max_interventions=1)
    tracker, observer = ListTracker(), ListObserver()
    with caplog.at_level("WARNING"), pytest.raises(KlLimitError, match="after 1 interventions"):
        train_ppo(
            causal_directory,
            tmp_path,
            tracker,
            observer=observer,
            kl_watch=watch,
            checkpoint_every=100,
        )
    found = spikes(caplog)
    assert [told for told, _ in observer.spikes] == [action, "stop"]
    assert all(SPIKE.fullmatch(message) for _, message in observer.spikes)
    assert [done for _, done, _, _ in observer.steps] == [step for step, _ in tracker.rows]
    losses = [told["policy_loss"] for _, _, _, told in observer.steps if "policy_loss" in told]
    assert losses == tracker.series("policy/policy_loss")
    assert [(line[0], line[5]) for line in found] == [(action, "1"), ("stop", "2")]
    assert all(float(line[1]) > 1e-3 and line[3] == "max_kl_per_token" for line in found)
    _, per_token, per_response, _, iteration, _ = found[0]
    logged = dict(tracker.rows)[int(iteration) + 1]
    assert float(per_token) == pytest.approx(logged["policy/kl_per_token"], rel=1e-5)
    assert float(per_response) == pytest.approx(logged["policy/kl"], rel=1e-5)


LAST_UPDATE_ONLY = {
    "num_iterations": 1,
    "critic_warmup_iterations": 0,
    "optimizer": OptimizerConfig(learning_rate=3e-2, schedule="constant", warmup_fraction=0.0),
}


def test_the_last_update_is_watched_too(causal_directory, tmp_path, caplog):
    watch = KlWatchConfig(max_kl_per_token=1e-3, action="stop")
    with pytest.raises(KlLimitError, match="iteration 1: KL"):
        train_ppo(causal_directory, tmp_path, kl_watch=watch, **LAST_UPDATE_ONLY)
    assert [line[0] for line in spikes(caplog)] == ["stop"]
    kept = CheckpointStore(tmp_path / "checkpoints").directory.glob("step-*")
    assert [path.name for path in kept] == ["step-000000000"]


def test_a_last_update_out_of_bounds_is_rolled_back(causal_directory, tmp_path, caplog):
    models = toy_models(causal_directory)
    start = policy_weights(models)
    changes = {
        "kl_watch": KlWatchConfig(max_kl_per_token=1e-3, action="roll_back"),
        **LAST_UPDATE_ONLY,
    }
    first = train_ppo(causal_directory, tmp_path, None, models, **changes)
    now = dict(models.policy.named_parameters())
    assert all(torch.equal(now[name], start[name]) for name in start)
    assert [line[0] for line in spikes(caplog)] == ["roll_back"]
    again = train_ppo(causal_directory, tmp_path, **changes)
    assert again[2] == first[2]
    assert len(spikes(caplog)) == 1  # a finished run is not watched again


@pytest.mark.parametrize("action", ["lower_learning_rate", "raise_kl_coef"])
def test_actions_with_nothing_left_to_act_on_keep_the_last_update(
    action, causal_directory, tmp_path, caplog
):
    unwatched = train_ppo(causal_directory, tmp_path / "a", **LAST_UPDATE_ONLY)
    watch = KlWatchConfig(max_kl_per_token=1e-3, action=action)
    watched = train_ppo(causal_directory, tmp_path / "b", kl_watch=watch, **LAST_UPDATE_ONLY)
    assert watched[2] == unwatched[2]
    assert [line[0] for line in spikes(caplog)] == [action]


@pytest.mark.parametrize("limit", [1e-3, None])
def test_a_last_update_that_leaves_no_numbers_is_not_kept(
    limit, causal_directory, tmp_path, monkeypatch
):
    models = toy_models(causal_directory)
    watch = KlWatchConfig(max_kl_per_token=limit, action="lower_learning_rate")

    class Poison(ListTracker):
        def log_metrics(self, metrics, step):
            with torch.no_grad():
                models.reference.lm_head.weight.fill_(torch.nan)

    with pytest.raises(DivergedError, match="iteration 1: a reference log-probability"):
        train_ppo(causal_directory, tmp_path, Poison(), models, kl_watch=watch, **LAST_UPDATE_ONLY)
    kept = CheckpointStore(tmp_path / "checkpoints").directory.glob("step-*")
    assert [path.name for path in kept] == ["step-000000000"]


def test_responses_that_never_end_all_score_minus_the_penalty(causal_directory, tmp_path, caplog):
    tracker = ListTracker()
    models = toy_models(causal_directory)
    with torch.no_grad():
        models.policy.lm_head.weight[EOS] = 0.0
        models.policy.lm_head.weight.mul_(0.0)
        models.policy.model.norm.weight.zero_()
    data = PpoData(toy_data().prompts, end_ids=[10_000])
    fit_ppo(
        models,
        data,
        settings=toy_settings(num_iterations=2, missing_eos_penalty=7.0, scale_scores=True),
        run=TrainingRun(0, tracker, CheckpointStore(tmp_path / "checkpoints")),
    )
    assert tracker.series("policy/score_mean") == [-7.0, -7.0]
    assert tracker.series("policy/eos_fraction") == [0.0, 0.0]
    assert tracker.series("policy/response_length") == [8.0, 8.0]
    [told] = [record.getMessage() for record in caplog.records if "missing_eos" in record.message]
    assert "policy.max_new_tokens=8 (tokens that end one: 10000)" in told


def test_settings_and_data_that_do_not_fit_are_refused(causal_directory, tmp_path):
    with pytest.raises(ConfigError, match="share_trunk is True"):
        train_ppo(
            causal_directory,
            tmp_path,
            None,
            toy_models(causal_directory),
            **ONE_TRUNK,
        )
    run = TrainingRun(0, ListTracker(), CheckpointStore(tmp_path / "checkpoints"))
    models = toy_models(causal_directory)
    with pytest.raises(DataError, match="no prompts"):
        fit_ppo(models, PpoData([], [EOS]), settings=toy_settings(), run=run)
    with pytest.raises(ConfigError, match="ptx_coef"):
        fit_ppo(
            models, PpoData(toy_data().prompts, [EOS]), settings=toy_settings(ptx_coef=1.0), run=run
        )


def test_lora_takes_the_reference_from_the_policy_with_its_adapters_off(causal_directory, tmp_path):
    tracker = ListTracker()
    compute = ComputeConfig(lora=LoraConfig(rank=4))
    _, models, _ = train_ppo(causal_directory, tmp_path, tracker, compute=compute)
    assert abs(tracker.series("policy/kl")[0]) < 1e-5
    assert tracker.series("policy/kl")[-1] > 1e-3
    before = dict(load_causal(causal_directory).named_parameters())
    after = dict(models.policy.named_parameters())
    assert after.keys() == before.keys()  # merged: no adapter is left
    assert not all(torch.equal(after[name], before[name]) for name in before)
    with pytest.raises(ConfigError, match="reference"):
        train_ppo(causal_directory, tmp_path / "b", models=models)


def test_bfloat16_runs_with_a_shared_trunk_too(causal_directory, tmp_path):
    tracker = ListTracker()
    train_ppo(
        causal_directory,
        tmp_path,
        tracker,
        compute=ComputeConfig(precision="bfloat16"),
        recompute_old_logprobs=True,
        **ONE_TRUNK,
        num_iterations=3,
    )
    assert 1.0 < tracker.series("policy/logprob_mismatch")[0] < 1.05


@pytest.mark.parametrize("recompute", [True, False])
def test_bfloat16_needs_the_old_logprobs_from_the_trainer(recompute, causal_directory, tmp_path):
    changes = {
        "compute": ComputeConfig(precision="bfloat16"),
        "recompute_old_logprobs": recompute,
        "num_iterations": 3,
    }
    if not recompute:
        with pytest.raises(DivergedError, match="recompute_old_logprobs"):
            train_ppo(causal_directory, tmp_path, **changes)
        return
    tracker = ListTracker()
    _, models, _ = train_ppo(causal_directory, tmp_path, tracker, **changes)
    assert 1.0 < tracker.series("policy/logprob_mismatch")[0] < 1.05
    # The frozen models round like the trained ones: the reference is the policy's equal at first.
    assert tracker.series("policy/kl")[0] == 0.0
    assert not any(hasattr(model, PRECISION) for model in vars(models).values())


@pytest.mark.nightly  # at every change test_unread has the gradients of compiled layers
def test_compiled_layers_give_the_same_run_to_rounding(causal_directory, tmp_path):
    eager, compiled = ListTracker(), ListTracker()
    train_ppo(causal_directory, tmp_path / "a", eager, num_iterations=3)
    train_ppo(
        causal_directory,
        tmp_path / "b",
        compiled,
        num_iterations=3,
        compute=ComputeConfig(compile_layers=True),
    )
    for name in ("score_mean", "policy_loss", "value_loss"):
        assert compiled.series(f"policy/{name}") == pytest.approx(
            eager.series(f"policy/{name}"), abs=1e-3
        )
