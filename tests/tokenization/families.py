"""Chat formats of published model families, rebuilt small: how turns begin and end, not their text.

Each has a tokenizer of the family's kind, trained on the spot, and a template of our own that
writes the same marks in the same places. ``save_family`` puts one beside a tiny random model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tests.tokenization import family_templates as chat

TEXTS = [
    "Hello there, how are you? Human: Assistant: User: One answer, in two sentences. Second: 7!",
    "user\n\nassistant\n\nsystem\n\nThink first.\n\nThen answer: yes.\n",
    " USER: ASSISTANT: [INST] [/INST] <<SYS>> Today Date: 26 Jul 2024\n\n",
] * 9


_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def gpt2_level(special: list[str]) -> Tokenizer:
    """GPT-2's kind: bytes; a space belongs to the word behind it."""
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), special)


def byte_level(special: list[str]) -> Tokenizer:
    """Llama 3's and Qwen's kind: bytes; line ends in a row are one piece."""
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _trained(pre_tokenizers.Sequence([words, rest]), special)


def _trained(pieces: pre_tokenizers.PreTokenizer, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def space_prefixed(special: list[str]) -> Tokenizer:
    """SentencePiece's kind: a space before every text, bytes for unknown characters."""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁")})
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *letters, "▁H", "▁a"])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[("▁", "H"), ("▁", "a")],
            byte_fallback=True,
            unk_token="<unk>",
        )
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


@dataclass(frozen=True)
class Family:
    """How one family's conversations look."""

    template: str
    marks: tuple[str, ...]
    """Special tokens, EOS and BOS among them."""
    eos: str
    """The tokenizer's EOS."""
    turn_end: str
    """What ends an assistant's turn in training."""
    bos: str | None = None
    pad: str | None = None
    kind: Callable[[list[str]], Tokenizer] = byte_level
    stops: tuple[str, ...] = ()
    """``generation_config.eos_token_id`` as published, where it is more than the EOS."""
    words: tuple[str, ...] = ()
    """Added tokens that are not special: ``<think>`` and its like."""
    takes_right_space: bool = False
    """Phi's added tokens swallow the white space behind them."""
    system: bool = True
    """Whether the template knows a system turn."""
    lead: str = ""
    """What the template writes before an answer when it shows a whole conversation."""
    gap: str = ""
    """White space between an answer and its end."""

    def tokenizer(self) -> hf.PreTrainedTokenizerFast:
        """Train it; the same every time."""
        special = ["<unk>", *self.marks] if self.kind is space_prefixed else list(self.marks)
        backend = self.kind(special)
        if self.takes_right_space:
            backend.add_special_tokens(
                [AddedToken(mark, rstrip=True, special=True) for mark in self.marks]
            )
        backend.add_tokens([AddedToken(word, special=False) for word in self.words])
        named = {self.eos, self.bos, self.pad}
        return hf.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.eos,
            bos_token=self.bos,
            pad_token=self.pad,
            unk_token="<unk>" if self.kind is space_prefixed else None,
            extra_special_tokens=[mark for mark in self.marks if mark not in named],
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
        )


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

FAMILIES: dict[str, Family] = {
    "chatml-base": Family(
        chat.CHATML, _IM, eos="<|endoftext|>", turn_end="<|im_end|>", kind=gpt2_level
    ),
    "qwen2-instruct": Family(
        chat.QWEN_SYSTEM,
        _IM,
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3-thinking": Family(
        chat.QWEN_THINKING,
        _IM,
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        words=("<think>", "</think>"),
        lead="<think>\n\n</think>\n\n",
    ),
    "smollm": Family(
        chat.CHATML,
        _IM,
        bos="<|im_start|>",
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|im_end|>",
    ),
    "llama2": Family(
        chat.LLAMA2,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        lead=" ",
        gap=" ",
    ),
    "llama3": Family(
        chat.LLAMA3,
        (*_HEADERS, "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        turn_end="<|eot_id|>",
        stops=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama3-dated": Family(
        chat.LLAMA3_DATED,
        (*_HEADERS, "<|eot_id|>", "<|eom_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        turn_end="<|eot_id|>",
        stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "gemma": Family(
        chat.GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        turn_end="<end_of_turn>",
        stops=("<eos>", "<end_of_turn>"),
        system=False,
    ),
    "phi3": Family(
        chat.PHI3,
        ("<s>", "<|endoftext|>", *_ROLES, "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        turn_end="<|end|>",
        kind=space_prefixed,
        takes_right_space=True,
        stops=("<|endoftext|>", "<|assistant|>", "<|end|>"),
    ),
    "mistral1": Family(
        chat.MISTRAL1,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        system=False,
    ),
    "mistral3": Family(
        chat.MISTRAL3,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        system=False,
        lead=" ",
    ),
    "zephyr": Family(
        chat.ZEPHYR,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        pad="</s>",
        turn_end="</s>",
        kind=space_prefixed,
    ),
    "vicuna": Family(
        chat.VICUNA,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        lead=" ",
    ),
    "deepseek": Family(
        chat.DEEPSEEK,
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        bos="<|begin|>",
        eos="<|end|>",
        turn_end="<|end|>",
    ),
    "command-r": Family(
        chat.COMMAND_R,
        (
            "<PAD>",
            "<BOS_TOKEN>",
            "<EOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        turn_end="<|END_OF_TURN_TOKEN|>",
    ),
    "granite": Family(
        chat.GRANITE,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        turn_end="<|end_of_text|>",
    ),
    "tulu": Family(
        chat.TULU,
        ("<|endoftext|>", "<|pad|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|pad|>",
        turn_end="<|endoftext|>",
    ),
    "falcon-plain": Family(
        chat.FALCON,
        ("<|endoftext|>",),
        eos="<|endoftext|>",
        turn_end="<|endoftext|>",
        kind=gpt2_level,
        lead=" ",
    ),
    "glm": Family(
        chat.GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", *_ROLES),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        turn_end="<|endoftext|>",
        stops=("<|endoftext|>", "<|user|>"),
    ),
    "joined-turns": Family(
        chat.JOINED,
        ("<|endoftext|>", "<|sep|>", *_ROLES),
        eos="<|endoftext|>",
        turn_end="<|sep|>",
    ),
}
"""By name. Most close a turn with another token than the tokenizer's EOS."""


def save_family(
    name: str, directory: Path, *, seed: int = 0, config: hf.PreTrainedConfig | None = None
) -> Path:
    """Save a tiny random model with the family's tokenizer, as its publisher would.

    Args:
        name: of ``FAMILIES``.
        directory: receives the files.
        seed: of the weights.
        config: another architecture; its vocabulary must hold the tokenizer's tokens.
    """
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config or tiny_llama(len(tokenizer)))
    stops = tokenizer.convert_tokens_to_ids(list(family.stops)) or tokenizer.eos_token_id
    model.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_llama(vocab_size: int) -> hf.LlamaConfig:
    """Two layers, 16 wide."""
    return hf.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
