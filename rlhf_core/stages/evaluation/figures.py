"""Pictures on a run's page; one that cannot be drawn leaves a note and not an error."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_core.adapters.tracking.curves import read_curves
from rlhf_core.errors import RegistryError
from rlhf_core.evaluation import plots
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import ModelRef, StageResult

CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {"SFT: nats per token": ("sft/loss", "sft/heldout_nll")},
    "reward": {
        "Reward model: loss, nats per pair": ("reward/loss", "reward/heldout_loss"),
        "Reward model: accuracy": ("reward/accuracy", "reward/heldout_accuracy"),
    },
    "judge": {"Judge: accuracy": ("judge/accuracy", "judge/heldout_accuracy")},
    "policy": {
        "Policy: reward-model score": ("policy/reward_model_score",),
        "Policy: terms of the reward": ("policy/reward_term_*",),
        "Policy: KL from SFT, nats per response": ("policy/kl",),
        "Policy: response length, tokens": ("policy/response_length",),
        "Policy: entropy, nats per token": ("policy/entropy", "policy/sampled_entropy"),
        "Policy: share of responses that end": ("policy/eos_fraction",),
        "Policy: loss, nats per pair": ("policy/loss", "policy/heldout_loss"),
        "Policy: accuracy on pairs": ("policy/accuracy", "policy/heldout_accuracy"),
    },
}
"""Stage to picture to the metrics, or patterns of them, drawn in it; those that a run did not log
are left out."""


def _draw(
    notes: list[str], plot: Callable[..., str], title: str, *data: Any, **how: Any
) -> list[str]:
    """Return one picture, or none and a note: the run has decided, and its page must not fail."""
    try:
        return [plot(title, *data, **how)]
    except Exception as error:  # what matplotlib stumbles over has many types
        notes.append(f"No picture of {title!r}: {type(error).__name__}: {error}")
        return []


def comparison_figures(
    result: StageResult | None, rows: Sequence[ComparedAnswer], notes: list[str]
) -> list[str]:
    """Draw how the policy's answers compare with SFT's."""
    if result is None:
        return []
    figures: list[str] = []
    names = {
        "judge": "policy/win_rate",
        "judge, corrected by people": "policy/win_rate_corrected",
        "judge, over the champion": "policy/win_rate_over_champion",
        "judge, over best-of-n": "policy/win_rate_over_best_of_n",
        "gold rater": "gold/win_rate",
    }
    by_tag = {
        tag.replace("=", ": ").replace("_", " "): {
            who: metrics[name] for who, name in names.items() if name in metrics
        }
        for tag, metrics in {"all": result.report.metrics, **result.report.breakdown}.items()
    }
    title = "Win rate over SFT, by kind of prompt"
    figures += _draw(notes, plots.interval_plot, title, by_tag, neutral=0.5)
    if rows:
        lengths = {"policy": [row.policy_length for row in rows]}
        lengths["SFT"] = [row.sft_length for row in rows]
        figures += _draw(notes, plots.length_plot, "Response length, held-out prompts", lengths)
    increases = {
        name.removeprefix("policy/").removesuffix("_increase"): {"increase": estimate}
        for name, estimate in result.report.metrics.items()
        if name.endswith("_increase")
    }
    figures += _draw(notes, plots.interval_plot, "Vices: increase over SFT", increases, neutral=0.0)
    return figures


def choice_figures(policy: StageResult | None, notes: list[str]) -> list[str]:
    """Draw by what scores a checkpoint was chosen; nothing where none was."""
    choice = None if policy is None else policy.report.choice
    return _draw(notes, plots.checkpoint_plot, "Policy: checkpoints", choice) if choice else []


def training_figures(models: Mapping[str, ModelRef], notes: list[str]) -> list[str]:
    """Draw the curves of every training that has a run in MLflow."""
    figures: list[str] = []
    for stage, pictures in CURVES.items():
        if stage not in models or not models[stage].run_id:
            continue
        wanted = [name for names in pictures.values() for name in names]
        try:
            curves = read_curves(models[stage].run_id, wanted)
        except RegistryError as error:
            notes.append(f"No training curves of {stage}: {error}")
            continue
        for title, names in pictures.items():
            shown = {
                name: curve
                for name, curve in curves.items()
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in names)
            }
            if shown:
                figures += _draw(notes, plots.curve_plot, title, shown)
        if {"policy/kl", "policy/reward_model_score"} <= curves.keys():
            bought = curves["policy/kl"][1], curves["policy/reward_model_score"][1]
            figures += _draw(notes, plots.frontier_plot, "Policy: what the KL has bought", *bought)
    return figures
