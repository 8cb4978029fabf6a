"""Which checkpoint of a policy is offered: the one the judge prefers, on prompts set apart for it.

The final held-out set is not looked at: what is chosen here is measured there for the first time.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import CheckpointError
from rlhf_core.evaluation.win_rate import outcomes, win_rate
from rlhf_core.models import finish_training, load_causal, prepare_training, save_model
from rlhf_core.rollout.sample import SampledResponse
from rlhf_core.schema import (
    CheckpointChoice,
    CheckpointScore,
    Conversation,
    ModelRef,
    Prompt,
    Record,
)
from rlhf_core.stages.evaluation.compare import distances, sample_answers
from rlhf_core.stages.evaluation.judging import Panel
from rlhf_core.stages.evaluation.verdict import MOST_UNJUDGED
from rlhf_core.stages.models.base_model import name_ends
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import fits
from rlhf_core.stages.training.job import Trained, TrainingJob
from rlhf_core.stages.training.run import kept_weights
from rlhf_core.stages.training.selection_prompts import set_apart
from rlhf_core.statistics.intervals import Resampling, estimate_mean
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.records import write_records
from rlhf_core.tokenization import Renderer
from rlhf_core.trainers.checkpoint import Checkpoint
from rlhf_core.trainers.state import load_model_tensors

logger = logging.getLogger(__name__)

TIE = 0.5
RULE = "the earliest within one standard error of the best"
ANSWERS = "selection-answers.jsonl"


class SelectionAnswer(Record):
    """What SFT and every checkpoint said to a prompt that was set apart, and who won."""

    prompt_id: str
    prompt: Conversation
    sft: str
    answers: dict[int, str]
    """By checkpoint."""
    won: dict[int, float]
    """By checkpoint, by the judge: 1 the checkpoint, 0 SFT, 0.5 a tie."""


def choose_checkpoint(
    job: TrainingJob, trained: Trained, judge: ModelRef, run: StageRun
) -> tuple[Trained, CheckpointChoice | None]:
    """Let the judge choose among the checkpoints kept; the chosen one's weights become the model.

    Every checkpoint and SFT answer the prompts set apart, with the same random numbers. The judge
    compares each answer with SFT's; what it prefers by ``preferred`` is offered.

    Args:
        job: the training, which is over.
        trained: its last model, written to ``model``.
        judge: who prefers.
        run: where scores by checkpoint are logged.

    Returns:
        What is offered, and why; no reason where nothing could be set apart.

    Raises:
        CheckpointError: no kept checkpoint is whole.
    """
    config, renderer = job.config, model_renderer(job.start.path)
    panel = Panel(config, judge, job.directory)
    prompts = _readable(config, set_apart(config, job.splits, renderer).prompts, panel)
    kept = kept_weights(job, run)
    if kept is None or not prompts:
        logger.warning(
            "selection: no prompt could be set apart (too few dialogues that the judge did not "
            "learn from): the last checkpoint is offered"
        )
        return trained, None
    sft = _answers(config, load_checkpoint(job, renderer), renderer, prompts, "SFT")
    scored = {
        checkpoint.step: _score(job, checkpoint, renderer, prompts, sft, panel)
        for checkpoint in kept.read()
    }
    if not scored:
        raise CheckpointError(f"{job.checkpoints}: no checkpoint of the policy is whole any more")
    scored = _with_kl(job, renderer, prompts, scored)
    doubt = _doubt(scored)
    if doubt:
        logger.warning("selection: %s; the last checkpoint is offered", doubt)
    won = {step: one.won for step, one in scored.items()}
    step = max(scored) if doubt else preferred(won)
    choice = CheckpointChoice(
        step=step,
        doubt=doubt,
        scores=tuple(one.score for one in scored.values()),
        judge=judge.uri,
        num_prompts=len(prompts),
        rule=RULE,
        answers=job.directory / ANSWERS,
    )
    write_records(choice.answers, _choice_answers(prompts, sft, scored))
    run.log_artifact(choice.answers)
    for score in choice.scores:
        run.log_metrics(_logged(score), step=score.step)
    if step != max(scored) or scored[step].num_steps != trained.num_steps:
        trained = _rewrite(job, step, renderer)
    logger.info("%s", choice.summary)
    return trained, choice


def preferred(won: Mapping[int, Array]) -> int:
    """Return the earliest checkpoint that is as good as the best one, within its noise.

    The best has the highest win rate; an earlier one is as good if it falls short of it by no more
    than one standard error of the paired difference, taken as if there were none:

        sum of d <= sqrt(sum of d^2),  d = outcome of the best - outcome of the earlier one

    An earlier one has trained less on what the reward model likes; its KL from SFT is shown, and is
    most often less. One standard error: Breiman et al. (1984),
    "Classification and Regression Trees", section 3.4.3; the error: McNemar (1947).

    Args:
        won: checkpoint to its outcome on each prompt, [n], 1 for a win.
    """
    best = max(sorted(won), key=lambda step: float(won[step].mean()))

    def as_good(step: int) -> bool:
        short = won[best] - won[step]
        return float(short.sum()) <= math.sqrt(float((short**2).sum()))

    return min(step for step in won if as_good(step))


def _doubt(scored: Mapping[int, "_Scored"]) -> str:
    """Say why the judge's word chooses nothing; empty where it does.

    Ties would offer the earliest checkpoint, as if training had been found to be of no use.
    """
    unjudged = max(one.unjudged for one in scored.values())
    if unjudged > MOST_UNJUDGED:
        return f"{unjudged:.0%} of the answers were not judged (at most {MOST_UNJUDGED:.0%} may be)"
    if all(bool(np.all(one.won == TIE)) for one in scored.values()):
        return "the judge prefers no answer of any checkpoint to SFT's, nor SFT's to one"
    return ""


@dataclass(frozen=True)
class _Scored:
    score: CheckpointScore
    won: Array
    unjudged: float
    """Share of the answers that no judge compared with SFT's: ties, for want of a verdict."""
    answers: list[SampledResponse]
    num_steps: int
    """Fewer than the training's where the weights kept at its end are lost."""


def _score(
    job: TrainingJob,
    checkpoint: Checkpoint,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    sft: Sequence[SampledResponse],
    panel: Panel,
) -> _Scored:
    config, conversations = job.config, [prompt.prompt for prompt in prompts]
    model, label = load_checkpoint(job, renderer, checkpoint), f"checkpoint {checkpoint.step}"
    answers = _answers(config, model, renderer, prompts, label)
    texts = [[answer.text for answer in each] for each in (answers, sft)]
    scores, decided = panel.decide(conversations, texts)
    won = (
        outcomes(scores[0], scores[1], policy_texts=texts[0], sft_texts=texts[1])
        if decided is None
        else decided.over_sft
    )
    score = CheckpointScore(step=checkpoint.step, win_rate=win_rate(won, _plan(config)), kl=None)
    unjudged = 0.0 if decided is None else float(np.mean([bool(why) for why in decided.unjudged]))
    return _Scored(score, won, unjudged, answers, checkpoint.values["num_steps"])


def _plan(config: PipelineConfig) -> Resampling:
    settings = config.evaluation
    return Resampling(
        settings.confidence, settings.num_resamples, derived_seed(config.seed, "selection")
    )


def _with_kl(
    job: TrainingJob, renderer: Renderer, prompts: Sequence[Prompt], scored: dict[int, _Scored]
) -> dict[int, _Scored]:
    """Add how far the answers are from SFT, which is loaded once for all checkpoints."""
    reference = load_causal(job.start.path, device=job.config.model.device)
    rendered = [renderer.prompt_ids(prompt.prompt) for prompt in prompts]
    found = {}
    for step, one in scored.items():
        _, kl = distances(job.config, reference, rendered, one.answers)
        far = None if kl is None else estimate_mean(kl[0], _plan(job.config))
        found[step] = replace(one, score=one.score.model_copy(update={"kl": far}))
    return found


def _answers(
    config: PipelineConfig,
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    label: str,
) -> list[SampledResponse]:
    asked, label = [prompt.prompt for prompt in prompts], f"selection: answers of {label}"
    return sample_answers(
        config, model, renderer.tokenizer, asked, purpose="selection", label=label
    )


def load_checkpoint(
    job: TrainingJob, renderer: Renderer, checkpoint: Checkpoint | None = None
) -> PreTrainedModel:
    """Return SFT, or the policy as it would have been written after a checkpoint.

    Args:
        job: the training.
        renderer: of its SFT model.
        checkpoint: one that was kept; None is SFT.
    """
    model = load_causal(job.start.path, device=job.config.model.device)
    name_ends(model, renderer)
    if checkpoint is None:
        return model
    compute = job.config.policy.compute.model_copy(update={"compile_layers": False})
    policy = prepare_training(model, compute, seed=derived_seed(job.config.seed, job.role))
    load_model_tensors(policy, checkpoint.tensors)
    return finish_training(policy)


def _rewrite(job: TrainingJob, step: int, renderer: Renderer) -> Trained:
    """Write the policy as it was after a checkpoint in the place of the last one."""
    kept = kept_weights(job, None)
    found = [] if kept is None else [one for one in kept.read() if one.step == step]
    if not found:
        raise CheckpointError(f"{job.checkpoints}: checkpoint {step} is gone while it was chosen")
    model = load_checkpoint(job, renderer, found[0])
    sha256 = save_model(model, renderer.tokenizer, job.directory / "model")
    return Trained(sha256=sha256, num_steps=found[0].values["num_steps"])


def _readable(config: PipelineConfig, prompts: Sequence[Prompt], panel: Panel) -> list[Prompt]:
    """Leave out what a judge of ours has no room for."""
    longest = config.model.max_length - config.answer_length()
    readers = [model_renderer(one.path) for one in panel.judges if one.kind == "scalar"]
    return [
        prompt for prompt in prompts if all(fits(prompt, reader, longest) for reader in readers)
    ]


def _choice_answers(
    prompts: Sequence[Prompt], sft: Sequence[SampledResponse], scored: Mapping[int, _Scored]
) -> Iterator[SelectionAnswer]:
    for row, (prompt, answer) in enumerate(zip(prompts, sft, strict=True)):
        yield SelectionAnswer(
            prompt_id=prompt.prompt_id,
            prompt=prompt.prompt,
            sft=answer.text,
            answers={step: one.answers[row].text for step, one in scored.items()},
            won={step: float(one.won[row]) for step, one in scored.items()},
        )


def _logged(score: CheckpointScore) -> dict[str, float]:
    """Return a checkpoint's scores as metrics, with the interval."""
    name, rate = "policy/selection_win_rate", score.win_rate
    metrics = {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return metrics | ({} if score.kl is None else {"policy/selection_kl": score.kl.value})
