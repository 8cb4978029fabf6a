"""SFT: the loss is the mean NLL per counted token, it falls, and early stopping keeps the best."""

import math

import pytest
import torch
import transformers as hf

from rlhf_core.config import SftConfig
from rlhf_core.errors import ConfigError, DataError, DivergedError
from rlhf_core.models import load_causal
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import TrainingRun
from rlhf_core.trainers.sft import accumulate_nll, fit_sft, heldout_nll
from tests.trainers.toys import OPTIMIZER, ListObserver, ListTracker, toy_examples, train_stage


def test_loss_and_gradient_are_those_of_transformers(causal_directory):
    examples = toy_examples(5)
    ours = load_causal(causal_directory)
    loss, num_tokens = accumulate_nll(ours, examples, budget=20)
    theirs = hf.AutoModelForCausalLM.from_pretrained(causal_directory)
    total, counted = torch.zeros(()), 0
    for example in examples:
        prompt, response = (list(map(int, x)) for x in (example.prompt_ids, example.response_ids))
        row = torch.tensor([prompt + response])
        logprobs = theirs(input_ids=row).logits[0, :-1].log_softmax(-1)
        picked = logprobs.gather(1, row[0, 1:, None])[len(prompt) - 1 :]
        total, counted = total - picked.sum(), counted + len(response)
    mean = total / counted
    mean.backward()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert num_tokens == sum(example.num_tokens for example in examples)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_heldout_nll_of_a_uniform_model_is_log_vocabulary(causal_directory):
    model = load_causal(causal_directory)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert heldout_nll(model, toy_examples(9), budget=30) == pytest.approx(math.log(24), rel=1e-6)


def test_learns_to_repeat_and_reports_it(causal_directory, tmp_path):
    tracker = ListTracker()
    summary, model, _ = train_stage("sft", causal_directory, tmp_path, tracker, num_epochs=8)
    assert summary.metrics["sft/heldout_nll"] < 0.6 * summary.metrics["sft/heldout_nll_at_start"]
    assert tracker.series("sft/heldout_nll") == [
        summary.metrics["sft/heldout_nll_at_start"],
        summary.metrics["sft/heldout_nll"],
    ]
    again = heldout_nll(model, toy_examples(16, 1), budget=1_000)
    assert again == pytest.approx(summary.metrics["sft/heldout_nll"], rel=1e-5)
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
        assert len(tracker.series(f"sft/{name}")) == summary.num_steps == 64


@pytest.mark.parametrize(
    ("stage", "loss"),
    [("sft", "sft/loss"), ("reward", "reward/loss"), ("dpo", "policy/loss")],
)
def test_an_observer_hears_every_step_with_its_loss(stage, loss, causal_directory, tmp_path):
    observer, tracker = ListObserver(), ListTracker()
    summary, _, _ = train_stage(stage, causal_directory, tmp_path, tracker, observer)
    steps = range(1, summary.num_steps + 1)
    assert [step[:3] for step in observer.steps] == [(stage, n, summary.num_steps) for n in steps]
    assert [step[3][loss] for step in observer.steps] == tracker.series(loss)


def test_gradient_clipping_is_really_applied(causal_directory, tmp_path):
    small = OPTIMIZER.model_copy(update={"max_grad_norm": 1e-9, "adam_eps": 1e-3})
    _, clipped, _ = train_stage("sft", causal_directory, tmp_path, optimizer=small)
    start = load_causal(causal_directory)
    for before, after in zip(start.parameters(), clipped.parameters(), strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def run_in(directory, tracker=None):
    store = CheckpointStore(directory / "checkpoints")
    return TrainingRun(seed=0, tracker=tracker or ListTracker(), checkpoints=store)


def test_early_stopping_ends_with_the_best_weights(causal_directory, tmp_path):
    wild = OPTIMIZER.model_copy(update={"learning_rate": 0.3, "schedule": "constant"})
    settings = SftConfig(
        optimizer=wild, batch_size=8, num_epochs=20, evaluate_every=2, early_stopping_patience=3
    )
    model, tracker = load_causal(causal_directory), ListTracker()
    heldout = toy_examples(16, 1)
    summary = fit_sft(
        model, toy_examples(64), heldout, settings=settings, run=run_in(tmp_path, tracker)
    )
    history = tracker.series("sft/heldout_nll")
    assert summary.num_steps < 160
    assert len(history) - 1 - history.index(min(history)) == 3
    assert summary.metrics["sft/heldout_nll"] == min(history)
    assert heldout_nll(model, heldout, budget=1_000) == pytest.approx(min(history), rel=1e-4)


def test_patience_without_evaluations_is_refused():
    with pytest.raises(ValueError, match="evaluate_every"):
        SftConfig(early_stopping_patience=1)
    assert issubclass(ConfigError, ValueError)


def test_nan_stops_the_run_and_names_the_step(causal_directory, tmp_path):
    model = load_causal(causal_directory)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(DivergedError, match="step 0"):
        fit_sft(model, toy_examples(8), toy_examples(4), settings=SftConfig(), run=run_in(tmp_path))
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("missing", ["train", "heldout"])
def test_nothing_to_train_or_measure_on_is_an_error(missing, causal_directory, tmp_path):
    data = {"train": toy_examples(8), "heldout": toy_examples(4), missing: []}
    with pytest.raises(DataError, match=missing):
        fit_sft(
            load_causal(causal_directory),
            data["train"],
            data["heldout"],
            settings=SftConfig(),
            run=run_in(tmp_path),
        )


def test_earlier_assistant_turns_count_where_the_mask_says_so(causal_directory):
    example = toy_examples(1)[0]
    mask = example.prompt_ids > 4
    mask[0] = False
    turned = type(example)("x", example.prompt_ids, example.response_ids, mask)
    model = load_causal(causal_directory)
    one, more = (heldout_nll(model, [x], budget=1_000) for x in (example, turned))
    assert one != more
