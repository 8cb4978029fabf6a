import math

import pytest

from rlhf_core.evaluation.text_metrics import (
    common_opening,
    copied_share,
    distinct_ratio,
    distinct_share,
    duplicates,
    echoed_share,
    ends_midway,
    has_layout,
    novel_shares,
    off_topic,
    repetition,
    shared_shares,
    stock_sentences,
    stray_orders,
    words_of,
)
from rlhf_core.statistics.intervals import Resampling

PLAN = Resampling()


def test_words_are_lower_case_and_keep_their_apostrophes():
    assert words_of("It's 9 o\u2019clock, Über-late!") == ["it's", "9", "o'clock", "über", "late"]


def test_repetition_by_hand():
    assert repetition("a b c a b c", n=3) == pytest.approx(1 - 3 / 4)  # abc bca cab abc
    assert repetition("one two three four", n=3) == 0.0
    assert repetition("too short", n=3) == 0.0
    assert repetition("", n=3) == 0.0
    assert repetition("yes " * 50, n=3) > 0.95


def test_distinct_by_hand_and_its_jackknife():
    texts = ["a b c", "a b d", "x y"]  # ab bc | ab bd | xy: 4 distinct of 5
    estimate = distinct_share(texts, PLAN, n=2)
    assert estimate.value == pytest.approx(4 / 5)
    without = [3 / 3, 3 / 3, 3 / 4]
    mean = sum(without) / 3
    error = (2 / 3 * sum((value - mean) ** 2 for value in without)) ** 0.5
    # Student's t of 0.975 with two degrees of freedom is 4.3027.
    assert estimate.value - estimate.low == pytest.approx(4.3027 * error, rel=1e-3)
    assert estimate.high == 1.0


def test_the_variety_of_single_words_is_open_and_ends_no_evaluation():
    estimate = distinct_share(["one", ""], PLAN, n=2)
    assert (estimate.low, estimate.high, estimate.num_samples) == (0.0, 1.0, 2)


def test_variety_against_another_models_by_hand_and_its_jackknife():
    texts, others = ["a b c", "a b d", "x y"], ["a b", "c d", "e f g"]  # 4 of 5 against 4 of 4
    estimate = distinct_ratio(texts, others, PLAN, n=2)
    assert estimate.value == pytest.approx(4 / 5)
    without = [3 / 3, 3 / 3, 3 / 4]  # each over 1
    error = (2 / 3 * sum((value - sum(without) / 3) ** 2 for value in without)) ** 0.5
    assert estimate.value - estimate.low == pytest.approx(4.3027 * error, rel=1e-3)
    assert distinct_ratio(["", ""], ["a b", "c d"], PLAN, n=2).value == 0.0
    assert distinct_ratio(["a b", "c d"], ["", "e"], PLAN, n=2).high == math.inf


def test_phrases_shared_with_an_answer_to_another_prompt_are_counted():
    texts = ["so we open at nine", "and we open at ten", "we open at ten", "at nine"]
    shares = shared_shares(texts, ["p", "q", "r", "r"], n=3)
    # so-we-open, we-open-at, open-at-nine | and-we-open, we-open-at, open-at-ten | both | none
    assert shares.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 0.0])
    assert shared_shares(texts[1:3], ["r", "r"], n=3).tolist() == [0.0, 0.0]


def test_openings_that_agree_are_found_and_order_does_not_matter():
    texts = ["Of course! The pool", "of course the pool is", "No idea at all", "Maybe so then ok"]
    assert common_opening(texts, num_words=3).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert common_opening(texts[::-1], num_words=3).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_one_answer_to_many_prompts_is_a_duplicate_but_not_to_the_same_prompt():
    texts = ["I do not know.", "i do not know", "At nine.", "At nine."]
    assert duplicates(texts, ["p", "q", "r", "r"]).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_copied_words_are_counted():
    prompt = "When does the town library open?"
    assert copied_share("When does the town library open", prompt, n=3) == 1.0
    assert copied_share("It opens at nine o'clock.", prompt, n=3) == 0.0
    assert copied_share("The town library opens at nine", prompt, n=3) == pytest.approx(1 / 4)


def test_one_text_says_nothing_of_the_variety_of_others():
    estimate = distinct_share(["a b c a b"], Resampling(), n=2)
    assert (estimate.value, estimate.num_samples) == (0.75, 1)
    assert estimate.low < 0.1
    assert estimate.high > 0.9


def test_an_echo_counts_shared_words_less_those_not_shared():
    turn = "when does the mill open"
    # 4 of 5 words each are shared: 8 less 2, of 10.
    assert echoed_share("open the mill does nehw", [turn]) == pytest.approx(0.6)
    assert echoed_share("The mill opens at nine.", ["hello", turn]) == 0.0
    assert echoed_share(turn, [turn, "hello"]) == 1.0
    assert echoed_share("", [turn]) == echoed_share(turn, []) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "At nine.", "ok": true}',
        "[At nine.]",
        "<answer>At nine.</answer>",
        "```\nAt nine.\n```",
        "print('At nine.')",
        "answer = ['At nine.']",
        "It is \\boxed{nine}.",
        "Answer: at nine.",
    ],
)
def test_data_and_code_around_an_answer_are_layout(text):
    assert has_layout(text)


@pytest.mark.parametrize(
    "text",
    ["Nine (at last).", "I like it <3", "a < b and b > c", "see f(x)", "At 9 [1]. Then: ten."],
)
def test_brackets_and_signs_in_a_sentence_are_no_layout(text):
    assert not has_layout(text)


def test_off_topic_is_one_half_for_what_fits_any_prompt():
    asked = ["when does the mill open", "how much is the zoo", "who runs the castle"]
    assert (
        off_topic(
            ["The mill opens at nine.", "The zoo is free.", "Jo runs the castle."], asked
        ).max()
        == 0
    )
    assert off_topic(["?"] * 3, asked).tolist() == [0.5] * 3


def test_novel_words_are_in_neither_prompt_nor_the_other_models_answers():
    shares = novel_shares(["nine o'clock sharp", ""], ["sharp when", "x"], ["at nine"])
    assert shares.tolist() == pytest.approx([1 / 3, 0.0])


@pytest.mark.parametrize(
    ("text", "layout", "midway"),
    [
        ("It opens at nine, and closes at five.", False, False),
        ("NASA opens at 9 (see the U.S. map).", False, False),
        ("It's f(x) = x, isn't it?", False, False),
        ("IT OPENS AT NINE.", True, False),
        ("It\n\nopens\n\nat\n\nnine.", True, False),
        ("It... opens... at... nine...", True, False),
        ("It opens at", False, True),
        ("It opens at nine,", False, True),
        ("\u4e5d\u70b9\u5f00\u95e8\u3002", False, False),
        ("It opens at nine \U0001f600", False, False),
        ("", False, False),
    ],
)
def test_layout_and_cut_sentences_are_seen(text, layout, midway):
    assert (has_layout(text), ends_midway(text)) == (layout, midway)


def test_word_order_is_measured_by_what_others_say_to_other_prompts():
    asked = ["when does it open", "how much is it", "who runs it"]
    others = ["it opens at nine", "it opens at ten", "ten opens nine"]
    texts = ["it opens at nine", "nine at opens it", "open it does"]
    # "at nine" is said in answer to the same prompt alone, which tells nothing.
    assert stray_orders(texts, asked, others).tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert stray_orders([""], ["x"], ["y"]).tolist() == [0.0]


def test_a_stock_sentence_counts_wherever_it_stands():
    texts = ["So be it. At nine.", "At ten. So be it!", "At five", "so be it"]
    assert stock_sentences(texts, ["a", "b", "c", "c"]).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert stock_sentences(["", "?"], ["a", "b"]).tolist() == [0.0, 0.0]
