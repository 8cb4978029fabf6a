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


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN_THINKING = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}"
    "{% if m.role != 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% else %}{% set thought = '' %}{% set said = m.content %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > last.user and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + said }}"
    "{% else %}{{ '<|im_start|>assistant\n' + said }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_QWEN_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nHuman: Second<|im_end|>\n' }}{% endif %}" + _CHATML
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set lead = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set said = lead + m.content if loop.index0 == 0 else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + said.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{% for m in messages %}"
    "{% set turn = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim)"
    " + '<|eot_id|>' %}"
    "{{ bos_token + turn if loop.first else turn }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA3_DATED = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}\n"
    "    {%- set date_string = strftime_now('%d %b %Y') %}\n"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n"
    "{%- if messages[0].role == 'system' %}{%- set first = messages[0].content | trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}{%- set first = '' %}{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}\n"
    "{{- first + '<|eot_id|>' }}\n"
    "{%- for m in messages %}\n"
    "    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}\n"
    "    {{- '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n"
    "{%- endif %}\n"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_MISTRAL1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}"
)
_MISTRAL3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_VICUNA = (
    "{{ bos_token + 'A chat.' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ ' USER: ' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ ' ASSISTANT: ' + m.content + eos_token }}"
    "{% else %}{{ ' ' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content + eos_token }}"
    "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
_COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>',"
    " 'system': '<|SYSTEM_TOKEN|>'}[m.role] + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
_GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content"
    " + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
_TULU = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token if loop.last else eos_token + '\n' }}"
    "{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ {'user': 'User: ', 'assistant': 'Assistant: ', 'system': ''}[m.role] + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
_GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_JOINED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if not loop.last %}{{ '<|sep|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|sep|><|assistant|>' }}{% endif %}"
)

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

FAMILIES: dict[str, Family] = {
    "chatml-base": Family(
        _CHATML, _IM, eos="<|endoftext|>", turn_end="<|im_end|>", kind=gpt2_level
    ),
    "qwen2-instruct": Family(
        _QWEN_SYSTEM,
        _IM,
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3-thinking": Family(
        _QWEN_THINKING,
        _IM,
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        words=("<think>", "</think>"),
        lead="<think>\n\n</think>\n\n",
    ),
    "smollm": Family(
        _CHATML,
        _IM,
        bos="<|im_start|>",
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        pad="<|im_end|>",
    ),
    "llama2": Family(
        _LLAMA2,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        lead=" ",
        gap=" ",
    ),
    "llama3": Family(
        _LLAMA3,
        (*_HEADERS, "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        turn_end="<|eot_id|>",
        stops=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama3-dated": Family(
        _LLAMA3_DATED,
        (*_HEADERS, "<|eot_id|>", "<|eom_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        turn_end="<|eot_id|>",
        stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "gemma": Family(
        _GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        turn_end="<end_of_turn>",
        stops=("<eos>", "<end_of_turn>"),
        system=False,
    ),
    "phi3": Family(
        _PHI3,
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
        _MISTRAL1,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        system=False,
    ),
    "mistral3": Family(
        _MISTRAL3,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        system=False,
        lead=" ",
    ),
    "zephyr": Family(
        _ZEPHYR,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        pad="</s>",
        turn_end="</s>",
        kind=space_prefixed,
    ),
    "vicuna": Family(
        _VICUNA,
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        turn_end="</s>",
        kind=space_prefixed,
        lead=" ",
    ),
    "deepseek": Family(
        _DEEPSEEK,
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        bos="<|begin|>",
        eos="<|end|>",
        turn_end="<|end|>",
    ),
    "command-r": Family(
        _COMMAND_R,
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
        _GRANITE,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        turn_end="<|end_of_text|>",
    ),
    "tulu": Family(
        _TULU,
        ("<|endoftext|>", "<|pad|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|pad|>",
        turn_end="<|endoftext|>",
    ),
    "falcon-plain": Family(
        _FALCON,
        ("<|endoftext|>",),
        eos="<|endoftext|>",
        turn_end="<|endoftext|>",
        kind=gpt2_level,
        lead=" ",
    ),
    "glm": Family(
        _GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", *_ROLES),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        turn_end="<|endoftext|>",
        stops=("<|endoftext|>", "<|user|>"),
    ),
    "joined-turns": Family(
        _JOINED,
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
