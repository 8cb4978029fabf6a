"""The work both sides do: one model and one batch, written to a folder for both to read.

Lengths follow HH-RLHF helpful-base under a 4,096-token vocabulary (log-normal), halved and cut to
a context of 256: most prompts are short, a few are long, as in real data.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

EOS = 2
LEARNING_RATE, BETA2, MAX_GRAD_NORM, DPO_BETA = 1e-4, 0.999, 1.0, 0.1


@dataclass(frozen=True)
class Size:
    """Shape of the model and of one batch."""

    hidden: int = 288
    layers: int = 6
    heads: int = 6
    vocabulary: int = 4_096
    sequences: int = 64
    length_scale: float = 0.5
    """Multiplies the lengths of real data."""

    @property
    def context(self) -> int:
        """Longest sequence."""
        return int(512 * self.length_scale)

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward layers."""
        return self.hidden * 8 // 3

    @property
    def weights_per_layer(self) -> int:
        """Matrix entries of one decoder layer."""
        return 4 * self.hidden**2 + 3 * self.hidden * self.intermediate

    @property
    def weights_of_reading(self) -> int:
        """Those of the last layer that only a token whose hidden state is read needs.

        Every other token is there for its key and value alone.
        """
        return self.weights_per_layer - 2 * self.hidden**2


def write_models(folder: Path, size: Size) -> None:
    """Write ``causal`` and ``scalar`` models with one trunk, and a tokenizer, under ``folder``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1_024,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    causal = LlamaForCausalLM(config)
    config.num_labels, config.reward_shift = 1, 0.0
    scalar = LlamaForSequenceClassification(config)
    scalar.model.load_state_dict(causal.model.state_dict())
    # A special token is found inside of words too: "w1" would be in "w17".
    special = ("<pad>", "<s>", "</s>", "<unk>")
    words = (*special, *(f"w{index}" for index in range(len(special), size.vocabulary)))
    known = {word: index for index, word in enumerate(words)}
    by_word = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=by_word,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True)),
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    transformers_logging.disable_progress_bar()
    for name, model in (("causal", causal), ("scalar", scalar)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_rows(folder: Path, size: Size) -> None:
    """Write one batch as ``rows.json``: demonstrations, and half as many pairs."""
    generator = np.random.default_rng(0)

    def draw(mean: float, spread: float, low: int, high: float) -> list[int]:
        length = np.exp(generator.normal(mean, spread)) * size.length_scale
        length = int(np.clip(length, low, high * size.length_scale))
        return generator.integers(4, size.vocabulary, length).tolist()

    def prompt() -> list[int]:
        return [1, *draw(4.69, 1.16, 6, 350)]

    def response() -> list[int]:
        return [*draw(3.9, 0.92, 3, 160), EOS]

    rows = {
        "demonstrations": [
            {"prompt_ids": prompt(), "response_ids": response()} for _ in range(size.sequences)
        ],
        "pairs": [
            {"prompt_ids": prompt(), "chosen_ids": response(), "rejected_ids": response()}
            for _ in range(size.sequences // 2)
        ],
    }
    (folder / "rows.json").write_text(json.dumps(rows))


def read_rows(folder: Path, kind: str) -> list[dict[str, list[int]]]:
    """Return the ``demonstrations`` or the ``pairs``."""
    rows: list[dict[str, list[int]]] = json.loads((folder / "rows.json").read_text())[kind]
    return rows


def unpaired_rows(
    pairs: list[dict[str, list[int]]],
) -> list[tuple[list[int], list[int], bool]]:
    """Return prompt, response and label of rows that are no pairs: two thirds of them good."""
    return [
        (pair["prompt_ids"], pair["chosen_ids" if index % 3 else "rejected_ids"], index % 3 > 0)
        for index, pair in enumerate(pairs)
    ]


def floor_flops(folder: Path, size: Size, stage: str, *, reference: bool = False) -> float:
    """Multiplications and additions a step cannot do without, nothing padded, nothing repeated.

    Two per weight and token forwards, four backwards; causal attention; the output head, and what
    the last layer does for a token beyond its key and value, only where the hidden state is read;
    the prompt of a pair once. With ``reference`` another model runs forwards.
    """
    if stage == "sft":
        rows = read_rows(folder, "demonstrations")
        shapes = [(len(row["prompt_ids"]), [len(row["response_ids"])]) for row in rows]
    else:
        rows = read_rows(folder, "pairs")
        shapes = [
            (len(row["prompt_ids"]), [len(row["chosen_ids"]), len(row["rejected_ids"])])
            for row in rows
        ]
    tokens = sum(prompt + sum(responses) for prompt, responses in shapes)
    read = sum(sum(responses) for _, responses in shapes)
    scored = sum((p + sum(r)) ** 2 - (r[0] ** 2 if len(r) > 1 else 0) for p, r in shapes)
    unread = tokens - (sum(len(r) for _, r in shapes) if stage == "reward" else read)
    forward = 2.0 * tokens * size.layers * size.weights_per_layer
    forward -= 2.0 * unread * size.weights_of_reading
    forward += 2.0 * scored * size.hidden * size.layers
    head = 0.0 if stage == "reward" else 2.0 * read * size.vocabulary * size.hidden
    return 3 * (forward + head) + (forward + head if reference else 0.0)
