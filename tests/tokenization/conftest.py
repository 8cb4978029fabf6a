"""Tokenizers of three kinds, trained on the spot on a few sentences."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Hello there, how are you? Human: Assistant: One answer, in two sentences. Second: 7!"] * 9
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOS_FIRST = "{{ bos_token }}" + CHATML


def byte_level(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def space_prefixed(special):
    """SentencePiece's habit: a space before every string, bytes for unknown characters."""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁")})
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *letters, "▁H"])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "H")], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def chatml():
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|im_start|>", "<|im_end|>", "<pad>"]),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def chatml_with_bos():
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<s>", "<|im_start|>", "<|im_end|>"]),
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=BOS_FIRST,
    )


def llama_like(template=None):
    return PreTrainedTokenizerFast(
        tokenizer_object=space_prefixed(["<unk>", "<s>", "</s>"]),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=template,
    )


def gpt2_like(template=None):
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"]),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        chat_template=template,
    )


MAKERS = {
    "chatml": chatml,
    "chatml-bos": chatml_with_bos,
    "llama": llama_like,
    "gpt2": gpt2_like,
}


@pytest.fixture(params=sorted(MAKERS))
def tokenizer_directory(request, tmp_path):
    MAKERS[request.param]().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture
def tokenizer_makers():
    return MAKERS
