"""The peer: TRL's GRPOTrainer, one iteration at a time (grpo_peer.py STAGE FOLDER OPTIONS).

Runs in the environment of ``peer-requirements.txt`` and knows nothing of this project's code.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import worker
from datasets import Dataset
from ppo_work import (
    ADAM_EPS,
    BATCH,
    EPOCHS,
    GROUP,
    KL_COEF,
    LEARNING_RATE,
    MINIBATCHES,
    read_prompts,
    read_responses,
    wait_for_step,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from work import BETA2, EOS

sys.stdout = sys.stderr
OPTIONS = json.loads(sys.argv[3])
torch.set_num_threads(OPTIONS.pop("threads", 1))
STEPS = EPOCHS * MINIBATCHES


class OneIterationAtATime(TrainerCallback):
    """Holds the training loop until the other end asks for an iteration."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.marks: dict[str, float] = {}
        for name, method in (
            ("generate", "_generate_single_turn"),
            ("score", "_generate_and_score_completions"),
        ):
            setattr(trainer, method, self._marked(name, getattr(trainer, method)))

    def _marked(self, name, method):  # noqa: ANN001, ANN202
        def marked(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            result = method(*args, **kwargs)
            self.marks[name] = time.perf_counter()
            if name == "generate":
                self.responses = result[0]
            return result

        return marked

    def start(self) -> None:
        self.clock, self.started = wait_for_step(), time.perf_counter()

    def on_train_begin(self, *_: object, **__: object) -> None:
        worker.answer(ready=True, idle_mb=worker.peak_megabytes())
        self.start()

    def on_step_end(self, _: object, state, *__: object, **___: object) -> None:  # noqa: ANN001
        if state.global_step % STEPS:
            return
        cost = self.clock.read()
        worker.answer(
            **cost,
            tokens=sum(map(len, self.responses)),
            finished=sum(ids[-1] == EOS for ids in self.responses) / BATCH,
            generate=(self.marks["generate"] - self.started) / cost["wall"],
            score=(self.marks["score"] - self.marks["generate"]) / cost["wall"],
            peak_mb=worker.peak_megabytes(),
        )
        self.start()


def build(folder: Path, **options: object) -> GRPOTrainer:
    """Return the trainer on the models and prompts of ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "causal", padding_side="left")
    scalar = AutoModelForSequenceClassification.from_pretrained(
        folder / "scalar", num_labels=1, dtype=torch.float32
    )
    # The space keeps the last word of the prompt apart from the first of the response.
    texts = [tokenizer.decode(ids) + " " for ids in read_prompts(folder)]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE,
        "adam_beta2": BETA2,
        "adam_epsilon": ADAM_EPS,
        "weight_decay": 0.0,
        "per_device_train_batch_size": BATCH // MINIBATCHES,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": MINIBATCHES,
        "num_iterations": EPOCHS,
        "num_generations": GROUP,
        "max_steps": STEPS * 1_000,
        "temperature": 1.0,
        "beta": KL_COEF,
        # The mean over the tokens of a step, as ours; the default divides by those of all steps.
        "loss_type": "bnpo",
        "shuffle_dataset": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = GRPOTrainer(
        args=GRPOConfig(**{**common, **options}),
        model=AutoModelForCausalLM.from_pretrained(folder / "causal", dtype=torch.float32),
        reward_funcs=scalar,
        reward_processing_classes=AutoTokenizer.from_pretrained(folder / "scalar"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts}),
    )
    if (folder / "reference").exists():
        reference = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
        trainer.ref_model.load_state_dict(reference.state_dict())
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
    directory = Path(sys.argv[2])
    if sys.argv[1] == "replay":
        worker.answer(idle_mb=0, **replay(directory))
    else:
        trainer = build(directory, **OPTIONS)
        trainer.add_callback(OneIterationAtATime(trainer))
        trainer.train()
