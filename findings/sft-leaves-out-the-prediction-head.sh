#!/usr/bin/env bash
# trl 1.16.0: a ModernBERT decoder is trained without its prediction head: the loss falls, the model that is saved gets worse.
#
# Expected: the loss of SFTTrainer is the model's own loss on the same tokens, and falls with it.
# Seen: the head is fused with the loss: the trainers multiply what the backbone gives with the weights of the output
#   embeddings, and know soft caps and scales by a few names in the configuration. What else a model does between the two
#   is left out: the dense layer and norm of ModernBertDecoderForCausalLM (the Ettin decoders) and of BERT-like decoders,
#   the soft caps of RecurrentGemma and xLSTM, which are called otherwise. The backbone learns to answer without the head,
#   which gets no gradient; whoever generates puts it back. Training loss, evaluation loss and token accuracy are all of
#   the model without its head. No warning.
# Matters: the curves are those of a good run, and what it leaves behind is worse than what it began with. DPO, KTO, GRPO
#   and RLOO take their log-probabilities the same way.
# Until that changes: compare the first logged loss with the model's own before a run on a new architecture.
# Output seen (float32, CPU; rows that the model knew before the run):
#   Llama:              trainer's loss 0.15 to 0.11, model's own loss 0.15 to 0.11
#   ModernBERT decoder: trainer's loss 5.51 to 0.15, model's own loss 0.16 to 3.40; weights of its head moved by 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.16.0
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 env/bin/python - <<'PYTHON'
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, ModernBertDecoderConfig, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

warnings.simplefilter("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
TEXTS = [f"question {i} has answer {(i * 5) % 8} and no other" for i in range(8)]


def letters():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<pad>", "<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


TOKENIZER = letters()
SIZES = dict(
    vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=1,
)


@torch.no_grad()
def own_loss(model):
    rows = [torch.tensor([TOKENIZER(text + "<end>")["input_ids"]]) for text in TEXTS]
    model.eval()
    lost = [-model(input_ids=row).logits[:, :-1].log_softmax(-1).gather(-1, row[:, 1:, None]) for row in rows]
    return float(torch.cat([part.flatten() for part in lost]).mean())


def learn(model):
    """The texts, by the model's own loss: what the SFT then begins with is a trained model."""
    rows = TOKENIZER([text + "<end>" for text in TEXTS], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train(name, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    learn(model)
    head = model.lm_head.dense.weight if hasattr(model.lm_head, "dense") else None
    before, head_before = own_loss(model), None if head is None else head.detach().clone()
    settings = SFTConfig(
        "out", per_device_train_batch_size=8, max_steps=60, logging_steps=1, learning_rate=3e-3, save_strategy="no",
        report_to=[], use_cpu=True, bf16=False,
    )
    data = Dataset.from_list([{"text": text} for text in TEXTS])
    trainer = SFTTrainer(model, args=settings, train_dataset=data, processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    model.save_pretrained("saved")
    after = own_loss(AutoModelForCausalLM.from_pretrained("saved"))
    moved = "" if head is None else f"; weights of its head moved by {float((head - head_before).abs().max()):.1f}"
    print(
        f"{name + ':':<19} trainer's loss {logged[0]:.2f} to {logged[-1]:.2f}, "
        f"model's own loss {before:.2f} to {after:.2f}{moved}"
    )
    return before, after, logged[0], logged[-1]


llama = train("Llama", LlamaConfig(**SIZES))
decoder = train("ModernBERT decoder", ModernBertDecoderConfig(**SIZES, cls_token_id=1, sep_token_id=1))
same = abs(llama[0] - llama[2]) < 0.02 and llama[1] <= llama[0]
other = decoder[2] > 3 and decoder[3] < 0.5 and decoder[1] > 1 > decoder[0]
raise SystemExit(0 if same and other else "the behaviour has changed")
PYTHON
