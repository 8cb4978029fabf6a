"""The judge as a measurement: how right it is, how right it could be, whose errors it shares."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlhf_core.config import PipelineConfig
from rlhf_core.config.metric_names import ERROR_CORRELATION
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.errors import DataError
from rlhf_core.evaluation.noise_ceiling import noise_ceiling
from rlhf_core.evaluation.preference_metrics import correctness, error_correlation
from rlhf_core.schema import (
    Conversation,
    DatasetSplits,
    Estimate,
    Look,
    ModelRef,
    PreferencePair,
)
from rlhf_core.stages.evaluation.judging import Panel
from rlhf_core.stages.evaluation.verdict import JUDGE_ACCURACY, JUDGE_CEILING, metric_plans
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import score_texts
from rlhf_core.statistics.clusters import numbered
from rlhf_core.statistics.intervals import SHARE, estimate_mean
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.records import read_records
from rlhf_core.tokenization import Renderer


@dataclass(frozen=True)
class JudgeCheck:
    """How right the judges are on held-out pairs that people voted on."""

    accuracy: Estimate | None = None
    """On the judge's half, all judges as one; at the confidence of the judge's gate."""
    ceiling: Estimate | None = None
    """What the annotators' own disagreement on those pairs allows."""
    metrics: dict[str, Estimate] = field(default_factory=dict)
    """``policy/judge_error_correlation``, where a reward model trained the policy."""


def check_judge(
    config: PipelineConfig,
    splits: DatasetSplits,
    panel: Panel,
    reward: ModelRef | None,
    look: Look | None = None,
) -> JudgeCheck:
    """Measure the judges on held-out pairs, and whether they err where the reward model errs.

    Neither was trained on any held-out pair, so judges of our own are compared with the reward
    model on both halves; from elsewhere, on at most ``num_judge_pairs`` of the judge's half, drawn
    by the seed. What is not judged is half right.

    Args:
        config: settings of the run.
        splits: dataset version.
        panel: the judges.
        reward: what the policy was optimised against; None after DPO.
        look: at the held-out prompts; gates are as much surer.
    """
    ours = all(judge.kind == "scalar" for judge in panel.judges)
    readers = [model_renderer(judge.path) for judge in panel.judges if ours]
    readers += [model_renderer(reward.path)] if ours and reward else []
    own = read_records(splits.judge_heldout, PreferencePair)
    if not ours:
        rng = random.Random(derived_seed(config.seed, "judge pairs"))
        own = rng.sample(own, min(len(own), config.evaluation.num_judge_pairs))
    other = read_records(splits.reward_heldout, PreferencePair) if ours and reward else []
    pairs = [(pair, half) for half, rows in (("own", own), ("other", other)) for pair in rows]
    if ours:
        pairs = [one for one in pairs if _is_readable(one[0], readers, config.model.max_length)]
    if not any(half == "own" for _, half in pairs):
        return JudgeCheck()
    records = [pair for pair, _ in pairs]
    prompts, sides = _sides(records)
    scores, decided = panel.decide(prompts, sides)
    right = correctness(scores[0] - scores[1]) if decided is None else decided.over_sft
    clusters = numbered(dialogue_key(prompt) for prompt in prompts)
    half = np.flatnonzero([half == "own" for _, half in pairs])
    plans = metric_plans(config, "judge")
    return JudgeCheck(
        accuracy=estimate_mean(right[half], plans(JUDGE_ACCURACY).by(clusters[half]), bounds=SHARE),
        ceiling=noise_ceiling([records[i] for i in half], clusters[half], plans(JUDGE_CEILING)),
        metrics=_errors_shared(config, reward, records, right, look) if reward else {},
    )


def _errors_shared(
    config: PipelineConfig,
    reward: ModelRef,
    pairs: Sequence[PreferencePair],
    right: Array,
    look: Look | None,
) -> dict[str, Estimate]:
    """Correlate the judges' errors with the reward model's, on the pairs that it can read."""
    readers, longest = [model_renderer(reward.path)], config.model.max_length
    rows = [i for i, pair in enumerate(pairs) if _is_readable(pair, readers, longest)]
    if not rows:
        return {}
    prompts, sides = _sides([pairs[i] for i in rows])
    chosen, rejected = score_texts(
        reward.path,
        prompts,
        sides,
        budget=config.evaluation.micro_batch_tokens,
        device=config.model.device,
    )
    name = f"policy/{ERROR_CORRELATION}"
    clusters = numbered(dialogue_key(prompt) for prompt in prompts)
    plan = metric_plans(config, "policy", look=look)(name)
    return {name: error_correlation(right[rows], correctness(chosen - rejected), clusters, plan)}


def _sides(pairs: Sequence[PreferencePair]) -> tuple[list[Conversation], list[list[str]]]:
    answers = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    return [pair.prompt for pair in pairs], answers


def _is_readable(pair: PreferencePair, readers: Sequence[Renderer], longest: int) -> bool:
    """Say whether a pair fits all models of ours; their own stages note those that do not."""
    try:
        return all(reader.pair(pair).num_tokens <= longest for reader in readers)
    except DataError:
        return False
