"""The demo's own tokenizer: byte-level BPE, so that any text comes back unchanged."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, BOS, EOS, *ROLES)
VOCABULARY_SIZE = 1_024

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ '<|assistant|>' + message.content + eos_token }}"
    "{% elif message.role in ('system', 'user') %}"
    "{{ '<|' + message.role + '|>' + message.content }}"
    "{% else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One BOS in front; an assistant's turn ends with EOS."""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the vocabulary of ``texts``; special tokens take the first ids, PAD being 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
