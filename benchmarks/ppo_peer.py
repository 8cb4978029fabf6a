"""The peer: TRL's PPOTrainer, one iteration at a time (ppo_peer.py STAGE FOLDER OPTIONS).

Runs in the environment of ``peer-ppo-requirements.txt`` and knows nothing of this project's code.
"""

from pathlib import Path

import torch
from datasets import Dataset
from ppo_work import (
    BATCH,
    EPOCHS,
    KL_COEF,
    MINIBATCHES,
    REPLAY_LEARNING_RATE,
    VALUE_COEF,
    read_prompts,
    read_responses,
)
from transformers import AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_policy import OneIterationAtATime, common_settings, read_causal, read_scalar, run


class EveryStep(OneIterationAtATime):
    """What the peer calls a step is a whole iteration."""

    def __init__(self, _: PPOTrainer) -> None:
        super().__init__()
        generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
        ppo_trainer.batch_generation = self.marked("generate", generate, self.see)
        ppo_trainer.masked_whiten = self.marked("score", whiten)

    def see(self, result: tuple, _: object, queries: torch.Tensor, *__: object) -> None:
        self.responses = result[0][:, queries.shape[1] :]

    def on_step_end(self, *_: object, **__: object) -> None:
        ended = float((self.responses == 2).any(1).float().mean())
        self.finish(int((self.responses != 0).sum()), ended)


def build(folder: Path, **options: object) -> PPOTrainer:
    """Return the trainer on the models and prompts of ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "causal", padding_side="left")
    reference = "reference" if (folder / "reference").exists() else "causal"
    prompts = Dataset.from_dict({"input_ids": read_prompts(folder)})
    settings = {
        **common_settings(),
        "per_device_train_batch_size": BATCH // MINIBATCHES,
        "gradient_accumulation_steps": MINIBATCHES,
        "num_mini_batches": MINIBATCHES,
        "num_ppo_epochs": EPOCHS,
        "total_episodes": BATCH * 1_000,
        "kl_coef": KL_COEF,
        "vf_coef": VALUE_COEF,
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
        "local_rollout_forward_batch_size": BATCH,
        "num_sample_generations": 0,
    }
    return PPOTrainer(
        args=PPOConfig(**{**settings, **options}),
        processing_class=tokenizer,
        model=read_causal(folder),
        ref_model=read_causal(folder, reference),
        reward_model=read_scalar(folder),
        value_model=read_scalar(folder),
        train_dataset=prompts,
    )


def replay(folder: Path) -> dict[str, object]:
    """Run one iteration on given responses; return what the peer makes of them."""
    prompts = [tuple(ids) for ids in read_prompts(folder)]
    given = dict(zip(prompts, read_responses(folder), strict=True))
    trainer = build(
        folder,
        learning_rate=REPLAY_LEARNING_RATE,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        total_episodes=BATCH,
        missing_eos_penalty=None,
        response_length=len(next(iter(given.values()))),
    )
    seen: dict[str, object] = {}

    def given_responses(model, queries, *_):  # noqa: ANN001, ANN002, ANN202
        asked = [tuple(row[row != 0].tolist()) for row in queries]
        seen["order"] = [prompts.index(prompt) for prompt in asked]
        responses = torch.tensor([given[prompt] for prompt in asked])
        tokens = torch.cat([queries, responses], 1)
        logits = ppo_trainer.forward(model, tokens, 0).logits
        return tokens, logits[:, queries.shape[1] - 1 : -1]

    whiten = ppo_trainer.masked_whiten

    def see_advantages(values, mask):  # noqa: ANN001, ANN202
        seen["advantages"] = values[torch.tensor(seen["order"]).argsort()].tolist()
        return whiten(values, mask)

    ppo_trainer.batch_generation = given_responses
    ppo_trainer.masked_whiten = see_advantages
    logged = []
    trainer.log = lambda metrics, *_: logged.append(metrics)
    trainer.train()
    return {
        "advantages": seen["advantages"],
        "kl": logged[0]["objective/kl"],
        "score": logged[0]["objective/scores"],
        "policy_loss": logged[0]["loss/policy_avg"],
        "value_loss": logged[0]["loss/value_avg"],
        "clip_fraction": logged[0]["policy/clipfrac_avg"],
        "entropy": logged[0]["policy/entropy_avg"],
    }


if __name__ == "__main__":
    run(build, replay, EveryStep)
