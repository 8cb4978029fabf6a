"""Every algorithm on the demo: what it gains by the gold rater and by the judge, and at what price.

    .venv/bin/python -m benchmarks.algorithms [--out FOLDER] [--only DPO KTO] [--seeds 0 1 2]

One SFT model, one reward model and one judge for all; seeds change the policy's training and the
answers that are compared. Each training and each evaluation is kept as it ends: the same command
goes on where it was ended, and prints the table of what there is. Trainings are resumed from their
checkpoints too. ``--set KEY=VALUE`` changes a setting of all, as in ``rlhf run``.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.resumable import ROOT, enter, kept, processor_seconds, require_same_settings
from rlhf_core.config import PipelineConfig, load_config
from rlhf_core.errors import DivergedError
from rlhf_core.evaluation.comparison import best_of_n_kl_bound
from rlhf_core.evaluation.rater import SCORE, score_gold
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.evaluation.win_rate import outcomes, win_rate
from rlhf_core.schema import DatasetSplits, ModelRef, StageResult
from rlhf_core.stages.evaluate import evaluate_policy
from rlhf_core.stages.policy import train_policy
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.stages.reward import train_reward
from rlhf_core.stages.sft import train_sft
from rlhf_core.statistics.intervals import Resampling
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.records import atomic_file, iterate_records
from rlhf_core.tokenization import load_tokenizer

PAIRS, SAMPLED, GROUPS = "demo-dpo.yaml", "demo.yaml", "demo-rloo.yaml"
NUM_ANSWERS = 4
BEST = f"best of {NUM_ANSWERS}"
METHODS: dict[str, tuple[str, dict[str, str]]] = {
    "DPO": (PAIRS, {}),
    "IPO": (PAIRS, {"loss": "ipo"}),
    "cDPO": (PAIRS, {"label_smoothing": "0.2"}),
    "robust DPO": (PAIRS, {"loss": "robust", "label_smoothing": "0.2"}),
    "SimPO": (PAIRS, {"loss": "simpo", "beta": "2.0"}),
    "ORPO": (PAIRS, {"loss": "orpo"}),
    "KTO": (PAIRS, {"loss": "kto"}),
    "PPO": (SAMPLED, {}),
    "RLOO": (GROUPS, {}),
    "GRPO": (GROUPS, {"advantages": "grpo"}),
    "GRPO, no length or deviation bias": (GROUPS, {"advantages": "dr_grpo"}),
    "GRPO, clip-higher": (GROUPS, {"advantages": "grpo", "clip_eps_high": "0.28"}),
    BEST: (SAMPLED, {}),
}
"""Name to the settings file and what it changes of ``policy``."""


@dataclass(frozen=True)
class Shared:
    """What all methods start from."""

    splits: DatasetSplits
    sft: ModelRef
    reward: ModelRef
    judge: ModelRef


@dataclass(frozen=True)
class Outcome:
    """One method with one seed: [n] columns by held-out prompt."""

    gold: Array
    """Against SFT's answer by the gold rater: 1, 0.5 or 0."""
    judge: Array
    """By the judge."""
    lengths: Array
    """Tokens of its answers."""
    kl: float
    """From SFT, nats a response; best-of-n's is its upper bound, log n - (n - 1)/n."""
    seconds: float | None
    """Of processors, for training; None where they were not counted."""


def slug(method: str) -> str:
    """Return the name of a method for folders and registries."""
    return method.lower().replace(" ", "-").replace(",", "")


def settings_of(method: str, seed: int, changes: Mapping[str, str]) -> PipelineConfig:
    """Return the settings of a method; every path in them starts in the folder of the results."""
    file, policy = METHODS[method]
    own = {f"policy.{key}": value for key, value in policy.items()}
    # A project of its own for each: a registry lets the same weights be judged only once.
    own |= {"data.output": "prepared", "seed": str(seed), "project": f"{slug(method)}-{seed}"}
    if method == BEST:
        own["evaluation.best_of_n"] = str(NUM_ANSWERS)
    return load_config(ROOT / "configs" / file, {**own, **changes})


def share(changes: Mapping[str, str]) -> Shared:
    """Prepare the data and train what all methods start from."""
    config, folder = settings_of("PPO", 0, changes), Path("runs/shared").absolute()
    require_same_settings(folder, config)
    splits = prepare_data(config)
    sft = kept(folder, "sft", lambda to: train_sft(config, splits, to)).model
    reward = kept(folder, "reward", lambda to: train_reward(config, splits, sft, to, "reward"))
    judge = kept(folder, "judge", lambda to: train_reward(config, splits, sft, to, "judge"))
    return Shared(splits, sft, reward.model, judge.model)


def measure(method: str, seed: int, shared: Shared, changes: Mapping[str, str]) -> Outcome:
    """Train and compare a method, as far as that was not done before.

    Raises:
        DivergedError: its training ended by itself.
    """
    config = settings_of(method, seed, changes)
    folder = Path("runs").absolute() / slug(method) / f"seed-{seed}"
    require_same_settings(folder, config)
    reward = shared.reward if config.policy.needs_reward_model else None
    policy = shared.sft
    seconds: float | None = None  # best-of-n trains nothing
    if method != BEST:
        trained = kept(
            folder,
            "policy",
            lambda to: train_policy(
                config, shared.splits, shared.sft, reward, to, judge=shared.judge
            ),
        )
        policy, seconds = trained.model, processor_seconds(folder, "policy")
    compared = kept(
        folder,
        "evaluate",
        lambda to: evaluate_policy(
            config,
            shared.splits,
            policy=policy,
            sft=shared.sft,
            reward=reward,
            judge=shared.judge,
            champion=None,
            context=to,
        ),
    )
    return outcome_of(config, compared, seconds, is_best=method == BEST)


def outcome_of(
    config: PipelineConfig, compared: StageResult, seconds: float | None, *, is_best: bool
) -> Outcome:
    """Return what an evaluation says of the policy, or of the best of several answers of SFT."""
    report = compared.report
    if report.samples is None:
        sys.exit(f"{compared.model.uri}: its evaluation kept no samples")
    rows = list(iterate_records(report.samples, ComparedAnswer))
    texts = [str(row.best_of_n) if is_best else row.policy for row in rows]
    tokenizer = load_tokenizer(compared.model.path)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    judge = [float(row.best_of_n_won or 0.0) if is_best else row.won for row in rows]
    kl = best_of_n_kl_bound(NUM_ANSWERS) if is_best else report.metric("policy/kl").value
    return Outcome(
        gold=gold_won(config, rows, texts),
        judge=np.array(judge),
        lengths=np.array(lengths, dtype=np.float64),
        kl=kl,
        seconds=seconds,
    )


def gold_won(config: PipelineConfig, rows: Sequence[ComparedAnswer], texts: list[str]) -> Array:
    """Return [n] outcomes of ``texts`` against SFT's answers by the outside rater."""
    sft = [row.sft for row in rows]
    ratings = score_gold(config.evaluation.rater, [row.prompt for row in rows], [texts, sft])
    if ratings is None:
        sys.exit("evaluation.rater: needed, for gold is what the table is about")
    ours, theirs = ([rating[SCORE] for rating in column] for column in ratings)
    return outcomes(ours, theirs, policy_texts=texts, sft_texts=sft)


COLUMNS = ("", "seeds", "gold win rate", "judge win rate", "KL", "tokens", "processor minutes")


def table(found: Mapping[str, Sequence[Outcome]], stopped: Mapping[str, Sequence[str]]) -> str:
    """Return the table, in Markdown.

    Win rates have 95% intervals over prompts, of the mean over seeds at each prompt; all others the
    lowest and the highest seed.
    """
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [row_of(method, of_seeds) for method, of_seeds in found.items() if of_seeds]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += [f"\n{method}: {why}" for method, reasons in stopped.items() for why in reasons]
    return "\n".join(lines) + "\n"


def row_of(method: str, found: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the cells of a method."""
    return (
        method,
        str(len(found)),
        interval([one.gold for one in found]),
        interval([one.judge for one in found]),
        spread([one.kl for one in found], 2),
        spread([float(one.lengths.mean()) for one in found], 1),
        spread([one.seconds / 60.0 for one in found if one.seconds is not None], 1),
    )


def interval(won: Sequence[Array]) -> str:
    """Return the mean of [seeds, n] outcomes with its interval over prompts."""
    estimate = win_rate(np.mean(np.stack(won), axis=0), Resampling(seed=0))
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean of a value over seeds, with the lowest and the highest."""
    if not values:
        return ""
    middle = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure_all(methods: Iterable[str], seeds: Sequence[int], changes: Mapping[str, str]) -> str:
    """Measure everything, the first seed of all methods first; return the table."""
    shared = share(changes)
    found: dict[str, list[Outcome]] = {method: [] for method in methods}
    stopped: dict[str, list[str]] = {}
    text = ""
    for seed in seeds:
        for method, of_seeds in found.items():
            try:
                of_seeds.append(measure(method, seed, shared, changes))
            except DivergedError as error:
                stopped.setdefault(method, []).append(f"seed {seed} ended by itself: {error}")
            text = table(found, stopped)
            with atomic_file(Path("table.md")) as stream:
                stream.write(text.encode())
    return text


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/algorithms"))
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    wanted: Any = parser.parse_args()
    enter(wanted.out)
    changes = dict(change.split("=", 1) for change in wanted.set)
    print(measure_all(wanted.only, wanted.seeds, changes))


if __name__ == "__main__":
    main()
