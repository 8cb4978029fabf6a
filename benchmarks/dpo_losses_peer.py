"""The peer's side of ``dpo_losses.py``: TRL's losses on the pairs of a folder, printed as JSON.

Runs in the environment of ``peer-requirements.txt`` and knows nothing of this project's code.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from work import read_rows, unpaired_rows

answers, sys.stdout = sys.stdout, sys.stderr
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "remove_unused_columns": False,
}


class Pretokenized(DPOTrainer):
    """TRL's DPO on token ids: its collator takes them, only its preparation wants text."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class PretokenizedKto(KTOTrainer):
    """The same for KTO."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def load(folder: Path, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)


def of_trainer(folder: Path, options: dict[str, Any]) -> float:
    """Loss of the first batch, all pairs of it, as the trainer itself computes it."""
    rows = read_rows(folder, "pairs")
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(rows),
        **COMMON,
        **options,
    )
    trainer = Pretokenized(
        model=load(folder, "causal"),
        ref_model=load(folder, "reference"),
        args=arguments,
        train_dataset=Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}),
        processing_class=AutoTokenizer.from_pretrained(folder / "causal"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


def pairs_apart(folder: Path) -> list[dict[str, Any]]:
    """Both responses of every pair, with those of the pair before it for the baseline."""
    rows = read_rows(folder, "pairs")
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[side],
            "KL_completion_ids": before[side],
            "label": side == "chosen_ids",
        }
        for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True)
        for side in ("chosen_ids", "rejected_ids")
    ]


def without_pairs(folder: Path) -> list[dict[str, Any]]:
    """Responses each to a prompt of its own, with the one before it for the baseline."""
    rows = unpaired_rows(read_rows(folder, "pairs"))
    return [
        {
            "prompt_ids": prompt,
            "completion_ids": response,
            "KL_completion_ids": before,
            "label": label,
        }
        for (prompt, response, label), (_, before, _) in zip(
            rows, [rows[-1], *rows[:-1]], strict=True
        )
    ]


def of_kto(folder: Path, examples: list[dict[str, Any]], options: dict[str, Any]) -> float:
    """Loss of all responses in one batch, each good or bad by itself."""
    arguments = KTOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(examples),
        max_length=None,
        **COMMON,
        **options,
    )
    trainer = PretokenizedKto(
        model=load(folder, "causal"),
        ref_model=load(folder, "reference"),
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(folder / "causal"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


def mean_logprobs(folder: Path) -> list[torch.Tensor]:
    """[P] mean log-probability of a token, of chosen and of rejected responses."""
    model = load(folder, "causal").eval()
    found: list[torch.Tensor] = []
    for side in ("chosen_ids", "rejected_ids"):
        means = []
        for row in read_rows(folder, "pairs"):
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            start = len(row["prompt_ids"])
            means.append(logprobs[start - 1 : -1].gather(1, ids[0, start:, None]).mean())
        found.append(torch.stack(means))
    return found


def of_method(folder: Path, name: str, options: dict[str, Any]) -> float:
    """Loss of TRL's method on log-probabilities; ORPO's with the NLL of its paper added."""
    if name in ("kto", "unpaired"):
        examples = pairs_apart(folder) if name == "kto" else without_pairs(folder)
        return of_kto(folder, examples, options)
    chosen, rejected = mean_logprobs(folder)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), alpha=0.0, label_smoothing=0.0, **options
    )
    if name == "simpo":
        return float(CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean())
    return float((-chosen - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]).mean())


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    losses = {
        case["title"]: (of_method(folder, case["peer"].pop("name"), case["peer"]))
        if "name" in case["peer"]
        else of_trainer(folder, case["peer"])
        for case in cases
    }
    versions = {name: version(name) for name in ("trl", "torch", "transformers")}
    answers.write(json.dumps({"versions": versions, "losses": losses}))


main()
