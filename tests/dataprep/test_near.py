"""Near duplicates: found when they are, and only then."""

import random

import numpy as np
import pytest

from rlhf_core.dataprep.cleaning import near, signatures
from rlhf_core.dataprep.cleaning.near import near_duplicates
from rlhf_core.dataprep.cleaning.prompt_index import PromptIndex, RowSignatures
from rlhf_core.dataprep.cleaning.signatures import SignatureTable, signature, similarity
from rlhf_core.dataprep.keys import prompt_keys
from rlhf_core.schema import Comparison, Message

WORDS = [f"word{i}" for i in range(3_000)]


def text(seed: int, num_words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def changed(original: str, share: float, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(w if rng.random() > share else rng.choice(WORDS) for w in original.split())


def table(*texts: str) -> np.ndarray:
    found = SignatureTable()
    found.extend([(one,) for one in texts])
    return found.array()


def jaccard(first: str, second: str) -> float:
    a, b = (
        {tuple(t.split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in (first, second)
    )
    return len(a & b) / len(a | b)


def test_the_estimate_is_near_the_jaccard_similarity():
    for share in (0.0, 0.02, 0.1, 0.5):
        first = text(1, 400)
        second = changed(first, share)
        assert similarity(signature(first), signature(second)) == pytest.approx(
            jaccard(first, second), abs=0.2
        )
    assert similarity(signature(text(1)), signature(text(2))) < 0.1


def test_a_small_edit_is_a_repeat_of_the_first_and_others_are_not():
    original = text(1)
    texts = [original, text(2), original + " indeed", text(3), original.upper()]
    assert near_duplicates([table(*texts)], 0.8) == {2: 0, 4: 0}


def test_every_part_must_be_near():
    same, prompts = table(text(1), text(1)), table(text(2), text(3))
    assert near_duplicates([same], 0.8) == {1: 0}
    assert near_duplicates([same, prompts], 0.8) == {}


def test_short_and_empty_texts_are_compared_whole():
    assert near_duplicates([table("Yes.", "No.", "yes.", "", " ")], 0.8) == {2: 0, 4: 3}
    assert near_duplicates([table()], 0.8) == {}


def test_punctuation_and_scripts_without_spaces_do_not_hide_a_repeat():
    def alike(first, second):
        return similarity(signature(first), signature(second))

    assert alike("Open at nine?", "open at nine") == 1
    assert alike('It opens, they say, at "nine"!', "it opens they say at nine") == 1
    assert alike("x = -1", "x = 1") == alike("C#", "C++") == alike(":)", "?!") == 0
    chinese = "中国的首都是北京、它是一个非常古老的城市、有很多人住在那里"
    assert alike(chinese, chinese + "。") > 0.8
    assert alike(chinese, "上海有很多高楼、晚上的灯光让人难忘") < 0.2
    thai = "ห้องสมุดเปิดเก้าโมงเช้าทุกวันยกเว้นวันอาทิตย์"
    assert alike(thai, thai + "ครับ") > 0.7


def test_texts_one_after_the_other_are_as_one_text():
    for first, second in (
        ("Open at nine", "or ten. É\u0301"),
        ("ﾃｽﾄ", "then \uff21\uff22"),
        ("", "a"),
    ):
        joined = signature(f"{first}\n{second}")
        np.testing.assert_array_equal(signature(first, second), joined)
        np.testing.assert_array_equal(signature(f"{first} ", second), joined)


def test_most_planted_repeats_are_found_among_many_texts():
    texts = [text(i) for i in range(3_000)]
    planted = {i: changed(texts[i], 0.01, seed=i) for i in range(0, 3_000, 10)}
    found = near_duplicates([table(*texts, *planted.values())], 0.8)
    true = {3_000 + j for j, i in enumerate(planted) if jaccard(texts[i], planted[i]) >= 0.9}
    assert len(true) > 200
    assert len(true & set(found)) > 0.97 * len(true)
    assert all(row >= 3_000 for row in found)


def test_many_equal_texts_take_no_time():
    found = near_duplicates([np.repeat(table(text(1)), 100_000, axis=0)], 0.8)
    assert len(found) == 99_999


def test_short_answers_to_many_prompts_are_compared_by_their_prompts(monkeypatch):
    prompts = [text(i, 12) for i in range(3_000)]
    prompts += [prompts[i] + "!" if i % 2 else prompts[i] for i in range(100)]
    tables = [table(*["No.\nYes."] * len(prompts)), table(*prompts)]
    compared = []
    mark = near._mark
    monkeypatch.setattr(
        near, "_mark", lambda rows, *a: (compared.append(len(rows)), mark(rows, *a))
    )
    found = near_duplicates(tables, 0.8)
    assert sum(size * size for size in compared) < 20 * len(prompts)
    assert {3_000 + i: i for i in range(0, 100, 2)}.items() <= found.items()
    assert all(row >= 3_000 and found[row] == row - 3_000 for row in found)


def template(number: int, num_changed: int) -> str:
    words = text(0, 30).split()
    for place in range(num_changed):
        words[7 * place + 3] = f"thing{number}-{place}"
    return " ".join(words)


@pytest.fixture
def compared(monkeypatch):
    """Sizes of all comparisons."""
    sizes = []
    alike = near._alike
    monkeypatch.setattr(near, "_alike", lambda *a: (sizes.append(len(a[1])), alike(*a))[1])
    return sizes


@pytest.mark.parametrize("num_changed", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1_000, 4_000])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_texts_of_one_template_cost_no_square(compared, num_changed, num_rows, num_parts):
    texts = [template(number, num_changed) for number in range(num_rows)]
    tables = [table(*texts), table(*["The same question?"] * num_rows)][:num_parts]
    bands, _ = near.bands_of(0.8)
    most = (near._HEADS + near._ORDERS * near._BESIDE) * num_rows * bands
    near_duplicates(tables, 0.8)
    assert sum(compared) <= most * (bands if num_parts == 2 else 1)
    compared.clear()
    near.linked(tables, 0.8)
    assert sum(compared) <= most * (bands if num_parts == 2 else 1)


def test_repeats_among_many_texts_of_one_template_are_found():
    texts = [template(number, 4) for number in range(3_000)]
    tables = [table(*texts, *(one + " indeed" for one in texts[::30]))]
    planted = {3_000 + place: 30 * place for place in range(100)}
    signs = tables[0]
    near_ones = {
        late: early
        for late, early in planted.items()
        if similarity(signs[late], signs[early]) > 0.9
    }
    found = near_duplicates(tables, 0.9)
    assert len(near_ones) > 80
    assert len(near_ones.keys() & found.keys()) > 0.95 * len(near_ones)
    groups = [set(group.tolist()) for group in near.linked(tables, 0.9)]
    together = [
        any({late, early} <= group for group in groups) for late, early in near_ones.items()
    ]
    assert sum(together) > 0.95 * len(near_ones)


def test_a_training_prompt_that_gives_a_heldout_one_away_is_told():
    index = PromptIndex(0.8)
    index.add([signature(text(1))])
    index.add([signature(text(1))])
    assert index.near([signature(text(1) + " please")])
    assert not index.near([signature(text(2))])


def test_of_heldout_prompts_from_one_template_the_near_one_is_found():
    index = PromptIndex(0.8)
    index.add([signature(f"{text(1)} {text(other)}") for other in range(2, 22)])
    assert index.near([signature(f"{text(1)} {text(15)} please")])
    assert not index.near([signature(f"{text(1)} {text(30)}")])


@pytest.mark.parametrize("num_words", [1, 3, 60, 65, 66, 67, 130, 400, 514, 515, 1_300])
def test_a_signature_has_the_least_value_of_each_permutation(num_words):
    words = text(num_words, num_words)
    triples = signatures._shingles([[words]])[0].tolist()
    a, b = (part.tolist() for part in signatures.empty_sketch().permutations)
    expected = [min((h * x + y) % 2**32 for h in triples) for x, y in zip(a, b, strict=True)]
    assert signature(words).tolist() == expected
    # No two shingles have one value, so texts agree where their least shingle is the same.
    assert all(factor % 2 for factor in a)


def test_the_estimate_is_that_of_datasketch():
    """Whose values are these and at most seven more, so that texts agree in the same places."""
    for number, keep in enumerate((10, 50, 100, 190)):
        words = text(number, 200).split()
        pair = [" ".join(words), " ".join([*words[:keep], *text(number + 99, 200 - keep).split()])]
        sketches = []
        for shingles in signatures._shingles([[each] for each in pair]):
            sketch = signatures.empty_sketch().copy()
            a, b = sketch.permutations
            values = (shingles.astype(np.uint64)[:, None] * a + b) % np.uint64(2**61 - 1)
            sketch.hashvalues = (values & np.uint64(2**32 - 1)).min(axis=0)
            sketches.append(sketch)
        assert similarity(*map(signature, pair)) == sketches[0].jaccard(sketches[1])


def test_each_row_has_the_signature_of_its_own_prompt_which_others_share():
    rows = RowSignatures()
    asked = [text(1), text(2), text(1).upper(), text(3), text(2)]
    items = [
        Comparison(
            comparison_id=str(number),
            prompt=(Message(role="user", content=words),),
            response_a="yes",
            response_b="no",
            votes=(),
        )
        for number, words in enumerate(asked)
    ]
    for some in (items[:2], items[2:]):
        rows.extend([(item, *prompt_keys(item.prompt)) for item in some])
    responses, prompts = rows.of_rows([0, 1, 2, 4])
    np.testing.assert_array_equal(prompts[:], table(*asked[:3], asked[4]))
    np.testing.assert_array_equal(prompts[1:, 8:16], table(*asked[1:3], asked[4])[:, 8:16])
    np.testing.assert_array_equal(responses[[3]], table("no\nyes"))
    dialogue = prompt_keys((Message(role="user", content=text(3)),))[1]
    np.testing.assert_array_equal(rows.of_prompt(3, dialogue), table(text(3)))
