"""Over-optimisation on the demo: gold and proxy reward over the distance from SFT.

    .venv/bin/python -m benchmarks.overoptimisation [--out FOLDER] [--pairs 400] [--members 3]

Proxies are reward models that learn from few pairs each, one alone and several as an ensemble;
best-of-n and PPO without a KL term optimise them, and the gold rater, which nothing learns from,
says what that was worth. Makes ``table.md`` and ``overoptimisation.png`` in the folder. Each
training and each measurement is kept as it ends: the same command goes on where it was ended.
``--set KEY=VALUE`` changes a setting, as in ``rlhf run``.
"""

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from benchmarks.overoptimisation_curves import Curve, Unit, best_of_n_values
from benchmarks.overoptimisation_page import draw, table
from benchmarks.resumable import ROOT, enter, kept, require_same_settings
from rlhf_core.config import PipelineConfig, load_config
from rlhf_core.errors import CheckpointError, ConfigError
from rlhf_core.evaluation.comparison import best_of_n_kl_bound
from rlhf_core.evaluation.rater import SCORE, score_gold
from rlhf_core.functional.rewards import combine_ensemble
from rlhf_core.models import load_causal
from rlhf_core.rollout.sample import SampledResponse
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    ModelRef,
    PreferencePair,
    Prompt,
    Record,
    RunContext,
    StageResult,
)
from rlhf_core.stages.evaluation.best_of_n import answer_several_times
from rlhf_core.stages.evaluation.compare import distances
from rlhf_core.stages.models.determinism import derived_seed
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.models.scoring import choose_prompts, score_texts
from rlhf_core.stages.policy import train_policy
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.stages.reward import train_reward
from rlhf_core.stages.sft import train_sft
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import begin_training
from rlhf_core.stages.training.selection import load_checkpoint
from rlhf_core.statistics.resampling import Array
from rlhf_core.storage.records import (
    atomic_file,
    md5_of,
    read_records,
    sha256_of,
    write_records,
)

How: TypeAlias = Literal["mean", "worst"]
SETTINGS = {"evaluation.num_prompts": "150"}
"""What all of it changes of the demo's settings."""
OF_MEMBERS = {"reward.num_epochs": "4"}
"""What the reward models change: of few pairs two passes are hardly any steps."""
OF_POLICIES = {
    "policy.kl_coef": "0",  # as Gao et al. train
    "policy.kl_watch": "{max_kl_per_token: null}",  # drifting is the point here
    "policy.optimizer.learning_rate": "1.0e-4",  # slow enough to see the way there
    "policy.num_iterations": "40",
    "policy.checkpoint_every": "3",
    "policy.selection": "{num_prompts: 100, max_checkpoints: 100}",  # every checkpoint is kept
}
"""What the policies change."""


class Plan(Record):
    """How much is measured."""

    pairs: int
    """Each reward model learns from: few, so that it can be fooled."""
    members: int
    """Reward models of the ensemble."""
    drawn: int
    """Answers of SFT to each prompt: the largest n."""
    answers: int
    """Of each checkpoint to each prompt."""


class ScoredAnswer(Record):
    """An answer to a held-out prompt and all that is known of it."""

    prompt: str
    response: str
    gold: float
    scores: tuple[float, ...]
    """By each reward model."""
    kl: float
    """k1 estimate of KL(policy || SFT) at this answer, nats."""


@dataclass(frozen=True)
class Measured:
    """The same as columns."""

    gold: Array
    """[prompts, k] of k answers each."""
    scores: Array
    """[members, prompts, k]."""
    kl: Array
    """[prompts, k]."""

    def proxy(self, proxy: "Proxy") -> Array:
        """[prompts, k] scores by a proxy, as training has them."""
        members = self.scores[: proxy.members]
        flat = torch.from_numpy(members.reshape(len(members), -1))
        combined = combine_ensemble(flat, proxy.how, uncertainty_coef=0.5).numpy()
        return np.asarray(combined.reshape(self.gold.shape))


@dataclass(frozen=True)
class Proxy:
    """What is optimised: the first of the reward models, or all of them as an ensemble."""

    name: str
    members: int
    how: How


@dataclass(frozen=True)
class Start:
    """What all curves start from."""

    splits: DatasetSplits
    sft: ModelRef
    judge: ModelRef
    rewards: tuple[ModelRef, ...]
    prompts: tuple[Prompt, ...]
    """Held out; every answer that is measured is to one of these."""


def proxies(members: int) -> tuple[Proxy, ...]:
    """Return the proxies that are compared."""
    together = f"ensemble of {members}"
    return (
        Proxy("one reward model", 1, "mean"),
        Proxy(f"{together}, mean", members, "mean"),
        Proxy(f"{together}, worst case", members, "worst"),
    )


def settings_of(name: str, changes: Mapping[str, str], seed: int = 0) -> PipelineConfig:
    """Return the settings of one training; a project of its own for each, as for a registry."""
    own = {"data.output": "prepared", "project": name, "seed": str(seed)}
    return load_config(ROOT / "configs" / "demo.yaml", {**SETTINGS, **own, **changes})


def few_pairs(splits: DatasetSplits, count: int, member: int, folder: Path) -> DatasetSplits:
    """Return the dataset with ``count`` of its pairs for the reward model, others each member."""
    pairs = read_records(splits.reward_train, PreferencePair)
    if count > len(pairs):
        raise ConfigError(f"--pairs {count}: the reward model's half has {len(pairs)} pairs")
    path = folder / "pairs.jsonl"
    write_records(path, random.Random(f"pairs {member}").sample(pairs, count))
    part = DatasetRef(
        path=path,
        sha256=sha256_of(path),
        num_rows=count,
        dvc_md5=md5_of(path),
        git_revision=splits.reward_train.git_revision,
    )
    return splits.model_copy(update={"reward_train": part})


def begin(plan: Plan, changes: Mapping[str, str]) -> Start:
    """Prepare the data and train all but the policies."""
    folder, config = Path("runs/shared").absolute(), settings_of("shared", changes)
    require_same_settings(folder, config)
    require_same_settings(folder, plan, "plan")
    splits = prepare_data(config)
    sft = kept(folder, "sft", lambda to: train_sft(config, splits, to)).model
    judge = kept(folder, "judge", lambda to: train_reward(config, splits, sft, to, "judge")).model
    prompts = choose_prompts(
        read_records(splits.prompts_heldout, Prompt),
        [model_renderer(sft.path)],
        count=config.evaluation.num_prompts,
        longest=config.model.max_length - config.answer_length(),
        seed=derived_seed(config.seed, "evaluation prompts"),
    )
    rewards = tuple(member_of(number, plan, changes, splits, sft) for number in range(plan.members))
    return Start(splits, sft, judge, rewards, tuple(prompts))


def member_of(
    number: int, plan: Plan, changes: Mapping[str, str], splits: DatasetSplits, sft: ModelRef
) -> ModelRef:
    """Train one reward model, with pairs and a seed of its own."""
    name = f"member-{number}"
    folder, config = (
        Path("runs").absolute() / name,
        settings_of(name, {**OF_MEMBERS, **changes}, number),
    )
    require_same_settings(folder, config)
    few = few_pairs(splits, plan.pairs, number, folder)
    return kept(folder, "reward", lambda to: train_reward(config, few, sft, to, "reward")).model


def scored(
    path: Path,
    config: PipelineConfig,
    start: Start,
    drawn: Sequence[Sequence[SampledResponse]],
) -> None:
    """Write down what gold rater and reward models say of answers, [k][prompts], and their KL."""
    prompts = [prompt.prompt for prompt in start.prompts]
    texts = [[answer.text for answer in column] for column in drawn]
    gold = score_gold(config.evaluation.rater, prompts, texts)
    if gold is None:
        raise ConfigError("evaluation.rater: needed, for gold is what this is about")
    budget = config.evaluation.micro_batch_tokens
    scores = [score_texts(model.path, prompts, texts, budget=budget) for model in start.rewards]
    renderer = model_renderer(start.sft.path)
    rendered = [renderer.prompt_ids(prompt) for prompt in prompts]
    sft, rows = load_causal(start.sft.path), []
    for place, column in enumerate(drawn):
        _, kl = distances(config, sft, rendered, column)
        if kl is None:
            raise ConfigError("evaluation.temperature: above 0, greedy answers have no KL")
        rows += [
            ScoredAnswer(
                prompt=start.prompts[row].prompt_id,
                response=answer.text,
                gold=gold[place][row][SCORE],
                scores=tuple(float(of_model[place][row]) for of_model in scores),
                kl=float(kl[0][row]),
            )
            for row, answer in enumerate(column)
        ]
    write_records(path, rows)


def measured(path: Path, num_prompts: int) -> Measured:
    """Read back what ``scored`` wrote."""
    rows = read_records(path, ScoredAnswer)

    def columns(values: Sequence[float]) -> Array:
        return np.array(values, dtype=np.float64).reshape(-1, num_prompts).T

    by_member = zip(*(row.scores for row in rows), strict=True)
    return Measured(
        gold=columns([row.gold for row in rows]),
        scores=np.stack([columns(of_member) for of_member in by_member]),
        kl=columns([row.kl for row in rows]),
    )


def answers_of(
    path: Path, config: PipelineConfig, start: Start, count: int, load: Callable[[], nn.Module]
) -> Measured:
    """Measure a model on ``count`` answers to each held-out prompt, unless it was before."""
    if not path.is_file():
        drawn = answer_several_times(
            load(),
            model_renderer(start.sft.path).tokenizer,
            [prompt.prompt for prompt in start.prompts],
            num_answers=count,
            max_new_tokens=config.answer_length(),
            temperature=config.evaluation.temperature,
            seed=config.seed,
        )
        scored(path, config, start, drawn)
    return measured(path, len(start.prompts))


def best_of_n_curve(sft: Measured, proxy: Proxy) -> Curve:
    """Measure best-of-n for n = 1, 2, 4 and so on."""
    num_prompts, drawn = sft.gold.shape
    sizes = [2**power for power in range(drawn.bit_length()) if 2**power <= drawn]
    by = sft.proxy(proxy)
    kl = np.array([best_of_n_kl_bound(n) for n in sizes])
    return Curve(
        way="best of n",
        proxy=proxy.name,
        steps=tuple(sizes),
        kl=np.repeat(kl[:, None], num_prompts, axis=1),
        gold_reward=best_of_n_values(by, Unit.of(sft.gold)(sft.gold), sizes),
        proxy_reward=best_of_n_values(by, Unit.of(by)(by), sizes),
    )


def trained(
    proxy: Proxy, start: Start, changes: Mapping[str, str]
) -> tuple[TrainingJob, StageResult]:
    """Train a policy on a proxy; return its training and what the judge offers of it."""
    name = "ppo-" + proxy.name.replace(" ", "-").replace(",", "")
    first, *others = start.rewards[: proxy.members]
    rewards: list[dict[str, Any]] = []
    if others:
        models = ["run", *(model.uri for model in others)]
        rewards = [{"kind": "model", "models": models, "combine": proxy.how}]
    own = {**OF_POLICIES, "policy.rewards": json.dumps(rewards)}
    config = settings_of(name, {**own, **changes})
    folder = Path("runs").absolute() / name
    require_same_settings(folder, config)
    result = kept(
        folder,
        "policy",
        lambda to: train_policy(
            config,
            start.splits,
            start.sft,
            first,
            to,
            scorers={model.uri: model for model in others},
            judge=start.judge,
        ),
    )
    context = RunContext(run_id=name, directory=folder)
    job = begin_training("policy", config, start.splits, context, sft=start.sft, reward=first)
    return job, result


def ppo_curve(
    proxy: Proxy, start: Start, sft: Measured, plan: Plan, changes: Mapping[str, str]
) -> Curve:
    """Train a policy on a proxy and measure its checkpoints."""
    job, result = trained(proxy, start, changes)
    folder, renderer = job.directory.parent, model_renderer(start.sft.path)
    weights, found = job.kept(None), {}
    for checkpoint in weights.read() if weights else ():
        path = folder / f"answers-{checkpoint.step:06d}.jsonl"
        load = partial(load_checkpoint, job, renderer, checkpoint)
        found[checkpoint.step] = answers_of(path, job.config, start, plan.answers, load)
    if not found:
        raise CheckpointError(
            f"{job.checkpoints}: no weights were kept; policy.selection.num_prompts has to be above"
            " 0, and a folder whose checkpoints are gone has to go too"
        )
    steps = sorted(found)
    gold, by = Unit.of(sft.gold), Unit.of(sft.proxy(proxy))
    return Curve(
        way="PPO",
        proxy=proxy.name,
        steps=tuple(steps),
        kl=np.stack([found[step].kl.mean(axis=1) for step in steps]),
        gold_reward=np.stack([gold(found[step].gold).mean(axis=1) for step in steps]),
        proxy_reward=np.stack([by(found[step].proxy(proxy)).mean(axis=1) for step in steps]),
        offered=result.report.choice.step if result.report.choice else None,
    )


def measure_all(plan: Plan, changes: Mapping[str, str]) -> str:
    """Measure everything; write table and picture after each curve, return the table."""
    start = begin(plan, changes)
    config = settings_of("shared", changes)
    load = partial(load_causal, start.sft.path, device=config.model.device)
    sft = answers_of(Path("runs/shared/answers.jsonl"), config, start, plan.drawn, load)
    all_proxies = proxies(plan.members)
    curves = [best_of_n_curve(sft, proxy) for proxy in all_proxies]
    for proxy in all_proxies:
        curves.append(ppo_curve(proxy, start, sft, plan, changes))
        with atomic_file(Path("table.md")) as stream:
            stream.write(table(curves).encode())
        draw(curves, Path("overoptimisation.png"))
    return table(curves)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/overoptimisation"))
    parser.add_argument("--pairs", type=int, default=400, help="of each reward model")
    parser.add_argument("--members", type=int, default=3, help="of the ensemble, at least 2")
    parser.add_argument("--drawn", type=int, default=64, help="answers of SFT: the largest n")
    parser.add_argument("--answers", type=int, default=2, help="of a checkpoint to a prompt")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    wanted: Any = parser.parse_args()
    plan = Plan(
        pairs=wanted.pairs, members=wanted.members, drawn=wanted.drawn, answers=wanted.answers
    )
    enter(wanted.out)
    print(measure_all(plan, dict(change.split("=", 1) for change in wanted.set)))


if __name__ == "__main__":
    main()
