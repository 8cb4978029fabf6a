#!/usr/bin/env bash
# TRL 1.16.0 with transformers 5.23.0: a reward model trained on a base without a padding token cannot see that an
#   answer ended.
#
# Expected: the reward is read at the last token of the answer, its end-of-sequence token, which the trainer takes care
#   to append; whether an answer ends is then what a reward model may learn first.
# Seen: RewardTrainer makes the end-of-sequence token the padding token where the tokenizer has none, as most base
#   models' have none, and writes it into the model's configuration. The classifier reads the score at the last token
#   that is not the padding token's id, whatever the attention mask says: before the end. An answer and the same answer
#   without its end have the same score to the last bit, and pairs that differ in the end alone stay at a loss of ln 2.
#   With a padding token of its own the same training learns them. No warning.
# Matters: PPO against such a model is not told to end its answers, and a tokenizer that later gets a padding token
#   reads every score at another place than the training did.
# Until that changes: give the tokenizer a padding token that is not its end, before a reward model is trained.
# Output seen (CPU):
#   padding is the end:  loss 0.69, score with the end less score without it: 0.0000
#   padding of its own:  loss 0.01, score with the end less score without it: positive
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.16.0
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import math

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, logging
from trl import RewardConfig, RewardTrainer

logging.set_verbosity_error()
WORDS = ["<unk>", "<end>", "<pad>", *(f"w{number}" for number in range(29))]
END = WORDS.index("<end>")


def train(pad):
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>", pad_token=pad)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_labels=1, eos_token_id=END, pad_token_id=None, bos_token_id=None,
        )
    )
    answers = [[3 + (start + step) % 29 for step in range(6)] for start in range(29)]
    rows = [{"chosen_ids": [*answer, END], "rejected_ids": answer} for answer in answers]
    settings = RewardConfig(
        output_dir="out", max_steps=60, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=60,
        save_strategy="no", report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
    )
    trainer = RewardTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    model.eval()
    with torch.no_grad():
        ended, cut = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()
            for ids in (torch.tensor([[*answers[0], END]]), torch.tensor([answers[0]]))
        )
        batch = torch.tensor([row["chosen_ids"] for row in rows]), torch.tensor([row["rejected_ids"] for row in rows])
        margins = model(input_ids=batch[0]).logits - model(input_ids=batch[1]).logits
    return torch.nn.functional.softplus(-margins).mean().item(), ended - cut


loss, gap = train(None)
own_loss, own_gap = train("<pad>")
print(f"padding is the end:  loss {loss:.2f}, score with the end less score without it: {gap:.4f}")
print(f"padding of its own:  loss {own_loss:.2f}, score with the end less score without it: {'positive' if own_gap > 0 else own_gap}")
expected = math.isclose(loss, math.log(2), abs_tol=1e-6) and gap == 0 and own_loss < 0.1 and own_gap > 0
raise SystemExit(0 if expected else "the behaviour has changed")
PYTHON
