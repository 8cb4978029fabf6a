#!/usr/bin/env bash
# peft 0.21.2: with a Lily adapter a token's logits depend on later tokens, on padding and on the batch's other rows.
#
# Expected: a causal model with adapters stays causal, and answers a row the same alone and in a batch, with a cache and
#   without; LoRA, VeRA and the others do.
# Seen: Lily's router gives every token probabilities over the shared B matrices, and the layer averages them over all
#   tokens of all rows that are in the forward pass, padding included; one B is used for all. So what comes later, and
#   what stands in other rows, changes what is predicted now. While a cache is used the average is over the newest
#   tokens alone. No warning.
# Matters: training sees the answer it is to predict through the average; log-probabilities while sampling are not those
#   of the training pass, so that importance ratios and KL are of two models; and a score depends on the batch size.
# Until that changes: take another adapter for causal models.
# Output seen (float32, CPU; largest difference of the logits of the same 8 tokens):
#   8 more tokens after them:    LoRA 0.0000, Lily 0.0669
#   another row in the batch:    LoRA 0.0000, Lily 0.2335
#   8 tokens of padding, masked: LoRA 0.0000, Lily 0.1914
#   token by token with a cache: LoRA 0.0000, Lily 0.5423
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import torch
from peft import LilyConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ROWS = torch.randint(1, 96, (2, 16), generator=torch.Generator().manual_seed(0))
FIRST = ROWS[:1, :8]


def adapted(config):
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.1)), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:  # as after some training; a fresh adapter changes nothing
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@torch.no_grad()
def differences(model):
    def logits(ids, **given):
        return model(input_ids=ids, **given).logits[:1, :8]

    alone = logits(FIRST)
    padded = torch.cat([FIRST, torch.zeros(1, 8, dtype=torch.long)], 1)
    steps, cache = [], None
    for at in range(8):
        found = model(input_ids=FIRST[:, at : at + 1], past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        steps.append(found.logits)
    others = [logits(ROWS[:1]), logits(ROWS[:, :8]), logits(padded, attention_mask=(padded != 0).long())]
    return [float((other - alone).abs().max()) for other in [*others, torch.cat(steps, 1)]]


LAYERS = dict(target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
lora, lily = differences(adapted(LoraConfig(**LAYERS))), differences(adapted(LilyConfig(num_B=2, **LAYERS)))
for label, *pair in zip(
    ("8 more tokens after them:", "another row in the batch:", "8 tokens of padding, masked:", "token by token with a cache:"),
    lora,
    lily,
    strict=True,
):
    print(f"{label:<28} LoRA {pair[0]:.4f}, Lily {pair[1]:.4f}")
raise SystemExit(0 if max(lora) < 1e-4 < 1e-3 < min(lily) else "the behaviour has changed")
PYTHON
