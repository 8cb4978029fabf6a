"""The peer: TRL's PPOTrainer, one iteration at a time (ppo_peer.py STAGE FOLDER OPTIONS).

Runs in the environment of ``peer-ppo-requirements.txt`` and knows nothing of this project's code.
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
    KL_COEF,
    LEARNING_RATE,
    MINIBATCHES,
    REPLAY_LEARNING_RATE,
    VALUE_COEF,
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
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from work import BETA2

sys.stdout = sys.stderr
OPTIONS = json.loads(sys.argv[3])
torch.set_num_threads(OPTIONS.pop("threads", 1))


class OneIterationAtATime(TrainerCallback):
    """Holds the training loop until the other end asks for an iteration."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        ppo_trainer.batch_generation = self._marked("generate", ppo_trainer.batch_generation)
        ppo_trainer.masked_whiten = self._marked("score", ppo_trainer.masked_whiten)

    def _marked(self, name, function):  # noqa: ANN001, ANN202
        def marked(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            result = function(*args, **kwargs)
            self.marks[name] = time.perf_counter()
            if name == "generate":
                context = args[1].shape[1]
                self.responses = result[0][:, context:]
            return result

        return marked

    def start(self) -> None:
        self.clock, self.started = wait_for_step(), time.perf_counter()

    def on_train_begin(self, *_: object, **__: object) -> None:
        worker.answer(ready=True, idle_mb=worker.peak_megabytes())
        self.start()

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        self.metrics = logs

    def on_step_end(self, *_: object, **__: object) -> None:
        cost = self.clock.read()
        worker.answer(
            **cost,
            tokens=int((self.responses != 0).sum()),
            finished=float((self.responses == 2).any(1).float().mean()),
            generate=(self.marks["generate"] - self.started) / cost["wall"],
            score=(self.marks["score"] - self.marks["generate"]) / cost["wall"],
            peak_mb=worker.peak_megabytes(),
        )
        self.start()


def build(folder: Path, **options: object) -> PPOTrainer:
    """Return the trainer on the models and prompts of ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "causal", padding_side="left")
    reference = "reference" if (folder / "reference").exists() else "causal"
    causal = [
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("causal", reference)
    ]
    scalar = [
        AutoModelForSequenceClassification.from_pretrained(
            folder / "scalar", num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    ]
    prompts = Dataset.from_dict({"input_ids": read_prompts(folder)})
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
        "gradient_accumulation_steps": MINIBATCHES,
        "num_mini_batches": MINIBATCHES,
        "num_ppo_epochs": EPOCHS,
        "total_episodes": BATCH * 1_000,
        "temperature": 1.0,
        "kl_coef": KL_COEF,
        "vf_coef": VALUE_COEF,
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
        "local_rollout_forward_batch_size": BATCH,
        "num_sample_generations": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return PPOTrainer(
        args=PPOConfig(**{**common, **options}),
        processing_class=tokenizer,
        model=causal[0],
        ref_model=causal[1],
        reward_model=scalar[0],
        value_model=scalar[1],
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
    directory = Path(sys.argv[2])
    if sys.argv[1] == "replay":
        worker.answer(idle_mb=0, **replay(directory))
    else:
        trainer = build(directory, **OPTIONS)
        trainer.add_callback(OneIterationAtATime())
        trainer.train()
