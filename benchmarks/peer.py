"""The peer: TRL's own trainers, one optimiser step at a time (peer.py STAGE FOLDER OPTIONS).

Runs in the environment of ``peer-requirements.txt`` and knows nothing of this project's code.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import worker
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from work import BETA2, DPO_BETA, LEARNING_RATE, MAX_GRAD_NORM, read_rows

sys.stdout = sys.stderr
worker.take_threads()


class Pretokenized(DPOTrainer):
    """TRL's DPO on token ids: its collator takes them, only its preparation wants text."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class OneStepAtATime(TrainerCallback):
    """Holds the training loop until the other end asks for a step."""

    def __init__(self) -> None:
        self.clock, self.cost = worker.Clock(), {}

    def wait(self) -> None:
        for line in sys.stdin:
            if line.strip() == "step":
                self.clock = worker.Clock()
                return
        os._exit(0)

    def on_train_begin(self, *_: object, **__: object) -> None:
        worker.answer(ready=True, idle_mb=worker.peak_megabytes())
        self.wait()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.cost = self.clock.read()

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "loss" not in logs:
            return
        worker.answer(
            **self.cost,
            loss=float(logs["loss"]),
            grad_norm=float(logs["grad_norm"]),
            peak_mb=worker.peak_megabytes(),
        )
        self.wait()


def main() -> None:
    stage, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    common = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": BETA2,
        "max_grad_norm": MAX_GRAD_NORM,
        "weight_decay": 0.0,
        "max_steps": 1_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "length_column_name": "length",
        "remove_unused_columns": False,
    } | options
    model_class = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    kind = "scalar" if stage == "reward" else "causal"
    model = model_class.from_pretrained(folder / kind, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / kind)
    build = {"sft": build_sft, "reward": build_reward, "dpo": build_dpo}[stage]
    trainer = build(model, tokenizer, folder, common)
    trainer.add_callback(OneStepAtATime())
    trainer.train()


def build_sft(model, tokenizer, folder, common):  # noqa: ANN001, ANN201
    rows = read_rows(folder, "demonstrations")
    columns = {
        "input_ids": [row["prompt_ids"] + row["response_ids"] for row in rows],
        "completion_mask": [
            [0] * len(row["prompt_ids"]) + [1] * len(row["response_ids"]) for row in rows
        ],
    }
    common["remove_unused_columns"] = True
    arguments = SFTConfig(completion_only_loss=True, **common)
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )


def build_reward(model, tokenizer, folder, common):  # noqa: ANN001, ANN201
    rows = read_rows(folder, "pairs")
    columns = {
        name: [row["prompt_ids"] + row[name] for row in rows]
        for name in ("chosen_ids", "rejected_ids")
    }
    columns["length"] = [max(len(a), len(b)) for a, b in zip(*columns.values(), strict=True)]
    return RewardTrainer(
        model=model,
        args=RewardConfig(**common),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )


def build_dpo(model, tokenizer, folder, common):  # noqa: ANN001, ANN201
    rows = read_rows(folder, "pairs")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["length"] = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    ]
    reference = type(model).from_pretrained(folder / "causal", dtype=torch.float32)
    return Pretokenized(
        model=model,
        ref_model=reference,
        args=DPOConfig(beta=DPO_BETA, **common),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )


main()
