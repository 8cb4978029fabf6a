"""Pretrain the demo's base model from nothing on the town's unaligned text.

    python -m rlhf_core.demo.build base

rebuilds ``data/base``: 1,755 steps on one thread, 8.5 minutes of CPU time (13.8 by the
clock on a busy machine). Same seed, torch version and thread count, same weights.
"""

import logging
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_core.demo.corpus import Document, generate_documents
from rlhf_core.demo.tokenizer import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    PAD,
    ROLES,
    SPECIAL_TOKENS,
    train_tokenizer,
)
from rlhf_core.errors import DivergedError
from rlhf_core.storage.folders import replacing_directory
from rlhf_core.storage.own_folders import OwnFolder, require_replaceable

DEFAULT_DOCUMENTS = 100_000
"""One pass over this many documents, none of them seen twice."""

TOKENIZER_DOCUMENTS = 20_000
"""The first so many of them teach the tokenizer."""

_BATCH_TOKENS = 2_048
_BUCKET_BATCHES = 50
"""Documents are sorted by length within this many batches, so that padding stays small."""
_LEARNING_RATE = 3e-3
_WARMUP_FRACTION = 0.04
_IGNORED = -100

BASE = OwnFolder(
    "the base model",
    is_ours=lambda folder: (folder / "config.json").is_file() and any(folder.glob("*.safetensors")),
)

_log = logging.getLogger(__name__)


def build_base(output: Path, *, seed: int, num_documents: int, num_threads: int) -> None:
    """Train tokenizer and model; replace ``output`` as a whole once both are done."""
    require_replaceable(output, BASE)
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    documents = list(generate_documents(seed, num_documents))
    tokenizer = _wrap(train_tokenizer(texts_of(documents[:TOKENIZER_DOCUMENTS])))
    model = LlamaForCausalLM(_configure(tokenizer))
    _log.info("parameters=%d documents=%d", model.num_parameters(), num_documents)
    sequences = [_encode(tokenizer, document) for document in documents]
    _pretrain(model, sequences, pad_id=SPECIAL_TOKENS.index(PAD), seed=seed)
    with replacing_directory(output) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def texts_of(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the plain texts of ``documents``, turn by turn."""
    for document in documents:
        if isinstance(document, str):
            yield document
        else:
            yield from (message.content for message in document)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _configure(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> list[int]:
    if isinstance(document, str):
        text = f"{BOS}{document}{EOS}"
    else:
        messages = [message.model_dump() for message in document]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _pretrain(
    model: LlamaForCausalLM, sequences: list[list[int]], *, pad_id: int, seed: int
) -> None:
    batches = list(_batches(sequences, random.Random(f"{seed}:batches")))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=len(batches), pct_start=_WARMUP_FRACTION
    )
    model.train()
    progress = tqdm(batches, desc="pretrain", unit="step", mininterval=2.0)
    for step, batch in enumerate(progress):
        inputs, labels = _collate(batch, pad_id)
        # Right padding under a causal mask reaches no real token, so no mask is passed.
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise DivergedError(f"pretraining step {step}: loss is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    _log.info("final loss=%.4f steps=%d", loss.item(), len(batches))


def _batches(sequences: list[list[int]], rng: random.Random) -> Iterator[list[list[int]]]:
    """Yield batches of similar length in random order, about ``_BATCH_TOKENS`` tokens each."""
    mean_length = sum(map(len, sequences)) / len(sequences)
    batch_size = max(1, int(_BATCH_TOKENS / mean_length))
    bucket_size = batch_size * _BUCKET_BATCHES
    for start in range(0, len(sequences), bucket_size):
        bucket = sorted(sequences[start : start + bucket_size], key=len)
        batches = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        rng.shuffle(batches)
        yield from batches


def _collate(batch: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, batch))
    inputs = torch.full((len(batch), width), pad_id)
    labels = torch.full((len(batch), width), _IGNORED)
    for row, sequence in enumerate(batch):
        inputs[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    return inputs, labels
