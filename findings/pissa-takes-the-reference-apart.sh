#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2: DPO with a new adapter that begins as PiSSA or OLoRA holds the policy to a model that never was.
#
# Expected: given a model and a peft_config, the reference is that model without the adapter: at the first step, where the
#   adapter changes nothing yet, the loss is ln 2 = 0.6931, and every reward is 0.
# Seen: `init_lora_weights="pissa"` and "olora" take the principal part of each weight out of the model and into the
#   adapter, so that both together are the model. The reference is read with the adapter switched off: what is left
#   of the model without its principal part. The policy is right, its reference is not. No warning.
# Matters: rewards, margins and KL are measured from a damaged model, which gives the answers of the data a log-probability
#   of its own making: the loss begins elsewhere, and what pairs are thought to be learned is noise. A smaller learning
#   rate or a larger beta holds the policy to the damaged model all the more.
# Threads: https://github.com/huggingface/transformers/issues/34468 (peft changes the weights; nothing about references).
# Until that changes: give the same model once more as ref_model, or begin adapters as LoRA does by default.
# Output seen (float32, CPU; mean log-probability of the chosen answers before DPO; its first step, learning rate 0):
#   model:           -78.67
#   default:  policy -78.67, reference -78.67; first loss 0.6931
#   PiSSA:    policy -78.67, reference -81.02; first loss 0.7705
#   OLoRA:    policy -78.67, reference -82.51; first loss 0.5680
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 env/bin/python - <<'PYTHON'
import math
import warnings

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

warnings.simplefilter("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
PAIRS = [{"prompt": f"question {i} ", "chosen": "a good answer", "rejected": "no"} for i in range(8)]
COMMON = dict(per_device_train_batch_size=8, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False)


def letters():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<pad>", "<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


TOKENIZER = letters()
torch.manual_seed(0)
AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )
).save_pretrained("base")


def base():
    return AutoModelForCausalLM.from_pretrained("base")


def run(trainer):
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]


@torch.no_grad()
def log_probability(model):
    """Of the chosen answers, their end included: the mean over the pairs of the sums over tokens."""
    sums = []
    for pair in PAIRS:
        start = len(TOKENIZER(pair["prompt"])["input_ids"])
        row = torch.tensor([TOKENIZER(pair["prompt"] + pair["chosen"] + "<end>")["input_ids"]])
        logprobs = model.eval()(input_ids=row).logits[:, start - 1 : -1].log_softmax(-1)
        sums.append(float(logprobs.gather(-1, row[:, start:, None]).sum()))
    return sum(sums) / len(sums)


def begin(name, init):
    """Reference and loss of the first step of DPO; nothing has been learned by then."""
    adapter = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    settings = DPOConfig("dpo", max_steps=1, learning_rate=0.0, beta=0.1, **COMMON)
    rows = Dataset.from_list(PAIRS)
    trainer = DPOTrainer(base(), args=settings, train_dataset=rows, processing_class=TOKENIZER, peft_config=adapter)
    log = run(trainer)
    reference = log["logps/chosen"] - log["rewards/chosen"] / 0.1
    print(f"{name + ':':<9} policy {log['logps/chosen']:.2f}, reference {reference:.2f}; first loss {log['loss']:.4f}")
    return log["logps/chosen"], reference, log["loss"]


model = log_probability(base())
print(f"{'model:':<16} {model:.2f}")
found = {name: begin(name, init) for name, init in (("default", True), ("PiSSA", "pissa"), ("OLoRA", "olora"))}
same = all(abs(policy - model) < 0.01 for policy, _, _ in found.values())
same &= abs(found["default"][1] - model) < 0.01 and abs(found["default"][2] - math.log(2)) < 1e-4
same &= all(abs(found[name][1] - model) > 1 for name in ("PiSSA", "OLoRA"))
raise SystemExit(0 if same else "the behaviour has changed")
PYTHON
