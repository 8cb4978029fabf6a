#!/usr/bin/env bash
# trl 1.16.0: who goes on training a PEFT adapter with DPO is held to another model than that adapter, unless it is plain LoRA.
#
# Expected: given a PeftModel with a trained adapter and no reference model, the reference is a frozen copy of that
#   adapter: at the first step the loss is ln 2 = 0.6931, and every reward is 0.
# Seen: the copy is made of the parameters that have ".default." within their names. LoRA of linear layers keeps its
#   matrices in modules and has it; most others keep theirs in a ParameterDict, where the name ends in ".default": LoRA
#   of an embedding, trainable tokens, IA3, VeRA, LoHa, LoKr, BOFT, HRA, FourierFT, RandLoRA, SHiRA, C3A, RoAd, DeLoRA,
#   GraLoRA and more. These stay as they are when new: the reference is the model before the adapter was trained, or,
#   with LoRA on layers and embedding, a half of the adapter, a model that never was. No warning. The same lines stand in
#   the trainers of KTO, GRPO and RLOO.
# Matters: an adapter by SFT, then DPO on it, is the usual way. The policy is held to the model before SFT; rewards, margins
#   and KL are measured from there, and what SFT made of the pairs counts as learned: the loss begins near its end.
# Until that changes: merge the adapter and give the merged model and a new peft_config, or check the first loss.
# Output seen (float32, CPU; mean log-probability of the chosen answers; 40 steps of SFT, then DPO):
#   before SFT:                       -78.67
#   LoRA:                     adapter -31.43, reference -31.43; first loss 0.6931
#   LoRA, with the embedding: adapter -19.71, reference -57.91; first loss 0.0185
#   VeRA:                     adapter -68.91, reference -78.67; first loss 0.3671
#   IA3:                      adapter -68.05, reference -78.67; first loss 0.3304
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
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

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


def go_on(name, adapter):
    adapter.task_type = "CAUSAL_LM"
    rows = Dataset.from_list([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS])
    settings = SFTConfig("sft", max_steps=40, learning_rate=1e-2, **COMMON)
    sft = SFTTrainer(base(), args=settings, train_dataset=rows, processing_class=TOKENIZER, peft_config=adapter)
    run(sft)
    sft.model.save_pretrained("adapter")
    trained = log_probability(PeftModel.from_pretrained(base(), "adapter"))
    model = PeftModel.from_pretrained(base(), "adapter", is_trainable=True)
    settings = DPOConfig("dpo", max_steps=1, beta=0.1, **COMMON)
    log = run(DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(PAIRS), processing_class=TOKENIZER))
    reference = log["logps/chosen"] - log["rewards/chosen"] / 0.1
    print(f"{name + ':':<25} adapter {trained:6.2f}, reference {reference:6.2f}; first loss {log['loss']:.4f}")
    return trained, reference, log["loss"]


before = log_probability(base())
print(f"{'before SFT:':<25}         {before:6.2f}")
lora = go_on("LoRA", LoraConfig(target_modules=["q_proj", "v_proj"]))
embedding = go_on("LoRA, with the embedding", LoraConfig(target_modules=["q_proj", "v_proj", "embed_tokens"]))
vera = go_on("VeRA", VeraConfig(target_modules=["q_proj", "v_proj"]))
ia3 = go_on("IA3", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
right = abs(lora[0] - lora[1]) < 0.01 and abs(lora[2] - math.log(2)) < 1e-4
half = embedding[0] - embedding[1] > 1
other = all(abs(reference - before) < 0.01 < trained - reference for trained, reference, _ in (vera, ia3))
raise SystemExit(0 if right and half and other else "the behaviour has changed")
PYTHON
