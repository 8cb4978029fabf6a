#!/usr/bin/env bash
# transformers 5.23.0: Trainer makes the gradient of a classifier, so of a reward model, as many times larger as the batch
#   has micro-batches.
#
# Expected: 64 rows in one piece and the same 64 rows in 8 accumulated micro-batches are one step: the same loss, the
#   same gradient. Gradient accumulation was mended in 2024 with num_items_in_batch, and language models have it right.
# Seen: Trainer takes a forward() with **kwargs for one that divides by num_items_in_batch, and then divides no more by the
#   number of micro-batches. The classifiers of decoders take **kwargs and leave num_items_in_batch aside: their loss is
#   the mean of the micro-batch, and eight of them are added. The gradient is 8 times the one of the same rows in one
#   piece, and so is the loss that is logged; for scores (num_labels=1) and for classes. No warning.
# Matters: reward models on human scores (0 to 4 for helpfulness and the like) are trained like this. With the default
#   max_grad_norm of 1 every step is clipped; without, the learning rate is 8 times the one that was set, and curves of
#   two machines with other micro-batches cannot be compared.
# Threads: https://github.com/huggingface/transformers/issues/47688 (open; other heads, the same cause).
# Until that changes: `loss_is_scaled_for_ga = False` in a subclass of Trainer.
# Output seen (CPU):
#   tokens: 1 x 64 loss 4.17, gradient norm 0.33; 8 x 8 loss 4.17, gradient norm 0.33
#   scores: 1 x 64 loss 5.44, gradient norm 7.38; 8 x 8 loss 43.54, gradient norm 59.03
#   classes: 1 x 64 loss 1.60, gradient norm 0.96; 8 x 8 loss 12.80, gradient norm 7.72
#   scores, loss_is_scaled_for_ga = False: 1 x 64 loss 5.44, gradient norm 7.38; 8 x 8 loss 5.44, gradient norm 7.38
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import contextlib
import io
import math

import torch
from transformers import (
    LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, Trainer, TrainingArguments, logging,
)

logging.set_verbosity_error()


class Divided(Trainer):
    loss_is_scaled_for_ga = False


def first_step(model, labels, micro_batches, trainer=Trainer):
    """Loss and norm of the gradient of one step over 64 rows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_labels=1 if labels.is_floating_point() else 5, pad_token_id=0, use_cache=False,
    )
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label} for row, label in zip(TOKENS, labels)]
    settings = TrainingArguments(
        "out", max_steps=1, per_device_train_batch_size=64 // micro_batches, gradient_accumulation_steps=micro_batches,
        logging_steps=1, max_grad_norm=1e9, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )
    trainer = trainer(model=model(config), args=settings, train_dataset=rows)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return next((row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row)


draw = torch.Generator().manual_seed(1)
TOKENS = torch.randint(1, 64, (64, 12), generator=draw)
CLASSES = torch.randint(0, 5, (64,), generator=draw)
same = True
for name, times, model, labels, trainer in (
    ("tokens", 1, LlamaForCausalLM, TOKENS, Trainer),
    ("scores", 8, LlamaForSequenceClassification, CLASSES.float(), Trainer),
    ("classes", 8, LlamaForSequenceClassification, CLASSES, Trainer),
    ("scores, loss_is_scaled_for_ga = False", 1, LlamaForSequenceClassification, CLASSES.float(), Divided),
):
    whole, parts = (first_step(model, labels, number, trainer) for number in (1, 8))
    print(f"{name}: 1 x 64 loss {whole[0]:.2f}, gradient norm {whole[1]:.2f}; 8 x 8 loss {parts[0]:.2f}, gradient norm {parts[1]:.2f}")
    same &= all(math.isclose(part, times * one, rel_tol=0.01) for part, one in zip(parts, whole))
raise SystemExit(0 if same else "the behaviour has changed")
PYTHON
