"""The peer: TRL's GRPOTrainer, one iteration at a time (grpo_peer.py STAGE FOLDER OPTIONS).

Runs in the environment of ``peer-requirements.txt`` and knows nothing of this project's code.
"""

from pathlib import Path

import torch
from datasets import Dataset
from ppo_work import BATCH, EPOCHS, GROUP, KL_COEF, MINIBATCHES, read_prompts, read_responses
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_policy import OneIterationAtATime, common_settings, read_causal, read_scalar, run
from work import EOS

STEPS = EPOCHS * MINIBATCHES


class EverySixteenSteps(OneIterationAtATime):
    """An iteration is as many optimiser steps as it has minibatches."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        super().__init__()
        generate, score = "_generate_single_turn", "_generate_and_score_completions"
        setattr(trainer, generate, self.marked("generate", getattr(trainer, generate), self.see))
        setattr(trainer, score, self.marked("score", getattr(trainer, score)))

    def see(self, result: tuple, *_: object) -> None:
        self.responses = result[0]

    def on_step_end(self, _: object, state, *__: object, **___: object) -> None:  # noqa: ANN001
        if state.global_step % STEPS == 0:
            ended = sum(ids[-1] == EOS for ids in self.responses)
            self.finish(sum(map(len, self.responses)), ended / BATCH)


def build(folder: Path, **options: object) -> GRPOTrainer:
    """Return the trainer on the models and prompts of ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "causal", padding_side="left")
    # The space keeps the last word of the prompt apart from the first of the response.
    texts = [tokenizer.decode(ids) + " " for ids in read_prompts(folder)]
    settings = {
        **common_settings(),
        "per_device_train_batch_size": BATCH // MINIBATCHES,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": MINIBATCHES,
        "num_iterations": EPOCHS,
        "num_generations": GROUP,
        "max_steps": STEPS * 1_000,
        "beta": KL_COEF,
        # The mean over the tokens of a step, as ours; the default divides by those of all steps.
        "loss_type": "bnpo",
        "shuffle_dataset": False,
    }
    trainer = GRPOTrainer(
        args=GRPOConfig(**{**settings, **options}),
        model=read_causal(folder),
        reward_funcs=read_scalar(folder),
        reward_processing_classes=AutoTokenizer.from_pretrained(folder / "scalar"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts}),
    )
    if (folder / "reference").exists():
        trainer.ref_model.load_state_dict(read_causal(folder, "reference").state_dict())
    return trainer


def replay(folder: Path) -> dict[str, object]:
    """Take the first step on given responses; return what the peer makes of them."""
    responses = read_responses(folder)
    trainer = build(
        folder,
        per_device_train_batch_size=BATCH,
        steps_per_generation=1,
        max_steps=1,
        max_completion_length=len(responses[0]),
    )
    seen: dict[str, object] = {}

    def given_responses(*_: object) -> tuple[list[list[int]], None]:
        return responses, None

    score, compute = trainer._generate_and_score_completions, trainer._compute_loss

    def see_advantages(inputs):  # noqa: ANN001, ANN202
        scored = score(inputs)
        seen["advantages"] = scored["advantages"].tolist()
        return scored

    def see_loss(*args: object) -> torch.Tensor:
        loss = compute(*args)
        seen["policy_loss"] = loss.item()
        return loss

    trainer._generate_single_turn = given_responses
    trainer._generate_and_score_completions = see_advantages
    trainer._compute_loss = see_loss
    trainer.log = lambda *_: seen.update(
        {name: found[0] for name, found in trainer._metrics["train"].items()}
    )
    trainer.train()
    return {**seen, "score": seen["reward"]}


if __name__ == "__main__":
    run(build, replay, EverySixteenSteps)
