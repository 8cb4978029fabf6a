#!/usr/bin/env bash
# trl 1.16.0: disable_dropout=True, the default of the DPO, KTO and reward trainers, leaves OPT and Seed-OSS dropping out.
#
# Expected: with disable_dropout training mode answers as evaluation mode does. DPO's policy is then its reference at the
#   first step: the loss is ln 2 = 0.6931, every reward is 0, and no answer stands above its rival.
# Seen: only modules of torch.nn.Dropout are set to 0. A model whose layers call the function, with a probability that
#   they keep as a number, drops out as before: OPT (0.1 by default), Seed-OSS (0.1 in attention and residuals). No
#   warning, and the arguments that are saved with the run say that dropout is off.
# Matters: the reference answers in evaluation mode and the policy does not, so that rewards, margins and the accuracy
#   that is plotted are noise at first; a reward model is trained on other scores than it will give.
# Until that changes: load the model with every dropout of its configuration set to 0.
# Output seen (float32, CPU, before the first update):
#   GPT-2:                       loss 0.6931, share of answers above their rival 0.000
#   OPT:                         loss 0.7015, share of answers above their rival 0.375
#   OPT, 0 in its configuration: loss 0.6931, share of answers above their rival 0.000
#   Seed-OSS:                    loss 0.7236, share of answers above their rival 0.250
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.16.0
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 env/bin/python - <<'PYTHON'
import math
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedTokenizerFast, PrinterCallback, SeedOssConfig,
)
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

warnings.simplefilter("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
PAIRS = [{"prompt": f"question {i} ", "chosen": "a good answer", "rejected": "no"} for i in range(8)]


def letters():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<pad>", "<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


TOKENIZER = letters()
ENDS = dict(vocab_size=len(TOKENIZER), pad_token_id=0, bos_token_id=1, eos_token_id=1)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
OPT = dict(word_embed_proj_dim=32, ffn_dim=64, init_std=0.1)
SEED_OSS = dict(intermediate_size=64, num_key_value_heads=2, head_dim=8, initializer_range=0.1)


def first_step(name, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(name)
    settings = DPOConfig(
        "out", per_device_train_batch_size=8, max_steps=1, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True
    )
    assert settings.disable_dropout
    model = AutoModelForCausalLM.from_pretrained(name)
    trainer = DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(PAIRS), processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    log = trainer.state.log_history[0]
    print(f"{name + ':':<28} loss {log['loss']:.4f}, share of answers above their rival {log['rewards/accuracies']:.3f}")
    return abs(log["loss"] - math.log(2))


gpt2 = first_step("GPT-2", GPT2Config(n_embd=32, n_layer=2, n_head=4, initializer_range=0.1, **ENDS))
opt = first_step("OPT", OPTConfig(**OPT, **SIZES, **ENDS))
opt_off = first_step("OPT, 0 in its configuration", OPTConfig(**OPT, dropout=0.0, attention_dropout=0.0, **SIZES, **ENDS))
seed_oss = first_step("Seed-OSS", SeedOssConfig(**SEED_OSS, **SIZES, **ENDS))
raise SystemExit(0 if max(gpt2, opt_off) < 1e-4 < 1e-3 < min(opt, seed_oss) else "the behaviour has changed")
PYTHON
