"""Tokens counted word by word: the renderer's own number, or none."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from rlhf_core.schema import Message
from rlhf_core.stages.preparation import word_tokens
from rlhf_core.stages.preparation.token_rows import Asked, RowTokens
from rlhf_core.stages.preparation.word_tokens import cuts_at_spaces
from rlhf_core.tokenization import make_renderer
from rlhf_core.tokenization.load import load_tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TRIMMED = CHAT.replace("m.content", "m.content | trim").replace(
    "assistant|>\n{% endif", "assistant|>{% endif"
)
SPLITS = {
    "gpt2": [pre.ByteLevel(add_prefix_space=False)],
    "digits": [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)],
    **{
        f"pattern {number}": [
            pre.Split(Regex(pattern), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        for number, pattern in enumerate(word_tokens._PATTERNS)
    },
}
MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|eos|>")
LEARNED = ["the light house's keeper isn't here, they'll say: 12 ships in 1999.  \n\n - a - b"] * 20


def tokenizer_of(steps, *, normalizer=None, added=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LEARNED, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "    ")])
    tokenizer.add_tokens(list(added))
    return tokenizer


def row_tokens(backend, template, max_length=64):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|eos|>", extra_special_tokens=list(MARKS[:-1])
    )
    tokenizer.chat_template = template
    return RowTokens(make_renderer(tokenizer), max_length, max_length // 2)


@pytest.fixture(scope="module")
def checks():
    steps = [*SPLITS.values()]
    made = [row_tokens(tokenizer_of(one), template) for one in steps for template in (CHAT, PLAIN)]
    made.append(row_tokens(tokenizer_of(steps[-1], normalizer=normalizers.NFC()), TRIMMED))
    made.append(
        RowTokens(make_renderer(load_tokenizer(Path(__file__).parents[2] / "data/base")), 64, 32)
    )
    return made


WORDS = st.sampled_from(
    ["the", "light", "house's", " ", "  ", "\n", "\n\n", " \n", "\t", ",", "...", "-", "1999",
     "12", "isn't", "\u00a0", "e\u0301", "é", "図書館", "🙂", "\ufffd", "<think>", "    ", "x" * 70,
     "\x1c", "<|end|>", "<|en", "assistant", "\ud800", "I'LL", "a.b", "'s"]
)  # fmt: skip
TEXT = st.lists(WORDS | st.text(max_size=3), max_size=12).map("".join) | st.lists(WORDS).map(
    " ".join
)


def random_texts(number):
    kept = [HealthCheck.function_scoped_fixture]
    chosen = settings(max_examples=number, deadline=None, suppress_health_check=kept)
    return lambda test: chosen(
        given(question=TEXT, texts=st.lists(TEXT, min_size=1, max_size=3))(test)
    )


@random_texts(40)
@example(question="where", texts=["", " ", "the light  house", "one \n two", " the", "the "])
@example(question="where ", texts=["'s", "s", "\n", "<|end|>", "the end"])
def test_what_words_tell_is_what_the_renderer_gives(checks, question, texts):
    told_alike(checks, question, texts)


@pytest.mark.nightly
@random_texts(2_000)
def test_what_words_tell_of_many_texts_is_what_the_renderer_gives(checks, question, texts):
    told_alike(checks, question, texts)


def told_alike(checks, question, texts):
    prompt = (Message(role="user", content=question or "?"),)
    for tokens in checks:
        rows = [(prompt, texts)]
        told = tokens.rows(rows)
        [asked] = tokens._ask([prompt])
        lengths = (
            tokens._lengths([(asked, said) for said in texts]) if isinstance(asked, Asked) else []
        )
        slow = RowTokens(tokens._renderer, 64, 32)
        slow._words = None
        assert slow.rows(rows) == told
        [once] = slow._ask([prompt])
        if isinstance(once, Asked):
            assert once.num_tokens == asked.num_tokens
            assert slow._lengths([(once, said) for said in texts]) == lengths


@pytest.mark.parametrize("name", SPLITS)
def test_plain_answers_are_told_by_their_words(name):
    said = ["The light house's keeper isn't here.", "They'll say: 12 ships,  two\n\n - a", "no"]
    for template in (CHAT, PLAIN, TRIMMED):
        tokens = row_tokens(tokenizer_of(SPLITS[name]), template)
        [asked] = tokens._ask([(Message(role="user", content="Where is the light?"),)])
        whole = tokens._rendered(
            [(*asked.conversation, Message(role="assistant", content=one)) for one in said],
            generation_prompt=False,
        )
        assert None not in tokens._lengths_by_words([(asked, one) for one in said], whole)


@pytest.mark.parametrize(
    "backend",
    [
        tokenizer_of([pre.Metaspace()]),
        tokenizer_of([pre.ByteLevel(add_prefix_space=True)]),
        tokenizer_of([pre.ByteLevel(add_prefix_space=False, use_regex=False)]),
        tokenizer_of([pre.Split(Regex(r"\w+ \w+"), "isolated"), *SPLITS["gpt2"]]),
        tokenizer_of(SPLITS["gpt2"], normalizer=normalizers.Lowercase()),
        tokenizer_of(SPLITS["gpt2"], added=[AddedToken("of the")]),
        tokenizer_of(SPLITS["gpt2"], added=[AddedToken("<|x|>", rstrip=True)]),
        tokenizer_of(SPLITS["gpt2"], added=[AddedToken("<think>y")]),
    ],
)  # fmt: skip
def test_a_tokenizer_that_joins_words_or_may_is_not_asked_by_words(backend):
    assert not cuts_at_spaces(backend)


def test_words_longer_than_most_are_not_kept(checks):
    tokens = checks[-1]
    prompt = (Message(role="user", content="Where?"),)
    kept = len(tokens._words._words)
    assert tokens.rows([(prompt, ["x" * 40 + "y" * 40 + " z", "b"])])[0] is not None
    assert len(tokens._words._words) == kept
