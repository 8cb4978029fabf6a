"""Dialogues that open nearly alike lie on one side, and no group swallows a side."""

import itertools
import random

import numpy as np
import pytest

from rlhf_core.dataprep.cleaning.near import linked
from rlhf_core.dataprep.cleaning.near_dialogues import FirstTurnIndex, NearDialogues
from rlhf_core.dataprep.cleaning.signatures import SignatureTable
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.schema import Message

WORDS = "amber birch cedar delta ember flint grove haven inlet jetty knoll ledge marsh north"


def asked(text: str, system: str | None = None) -> tuple[Message, ...]:
    before = () if system is None else (Message(role="system", content=system),)
    return (*before, Message(role="user", content=text))


def question(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS.split(), k=14))


def grouped(prompts, *, threshold=0.7, largest_fraction=0.05, reserved=()) -> NearDialogues:
    first_turns = FirstTurnIndex()
    first_turns.extend((prompt, dialogue_key(prompt)) for prompt in prompts)
    return first_turns.groups(
        threshold,
        largest_fraction=largest_fraction,
        reserved={dialogue_key(prompt) for prompt in reserved},
        seed=0,
    )


def partition(found: NearDialogues) -> set[frozenset]:
    groups: dict = {}
    for key, deciding in found.representative.items():
        groups.setdefault(deciding, set()).add(key)
    return {frozenset(group) for group in groups.values()}


def test_prompts_that_differ_in_little_are_one_group():
    first, second, other = question(1), question(2), question(3)
    prompts = [asked(first), asked(f"Please, {first}?"), asked(f"{first} today"), asked(second)]
    found = grouped([*prompts, asked(other)])
    assert partition(found) == {frozenset(map(dialogue_key, prompts[:3]))}
    assert (found.num_groups, found.num_dialogues, found.largest) == (1, 3, 3)


def test_one_system_message_makes_no_prompts_near():
    system = " ".join(question(number) for number in range(20))
    found = grouped([asked(question(number), system) for number in range(30)])
    assert not found.representative


def test_other_system_messages_do_not_make_near_turns_far():
    prompts = [asked(question(1), question(2)), asked(f"{question(1)} today")]
    assert partition(grouped(prompts)) == {frozenset(map(dialogue_key, prompts))}


def test_groups_depend_neither_on_order_nor_on_other_dialogues():
    prompts = [
        asked(f"{prefix}{question(number)}") for number in range(40) for prefix in ("", "Well, ")
    ]
    found = grouped(prompts)
    assert found.num_groups == 40
    shuffled = random.Random(0).sample(prompts, len(prompts))
    assert grouped(shuffled) == found
    more = grouped([*shuffled, *(asked(question(number)) for number in range(100, 200))])
    assert more.representative == found.representative


def test_a_group_that_is_too_large_is_taken_apart(caplog):
    """One template about 300 things, two of them asked with and without a question mark."""
    start = " ".join(question(number) for number in range(4))
    template = [asked(f"{start} {number}") for number in range(300)]
    twice = [asked(f"{start} {number}?") for number in range(2)]
    found = grouped([*template, *twice, *(asked(question(n)) for n in range(200))])
    assert found.largest <= 25
    assert "near_dialogues_too_large" in caplog.text or not found.num_too_large
    deciding = found.representative
    for number in range(2):
        pair = dialogue_key(template[number]), dialogue_key(twice[number])
        assert deciding[pair[0]] == deciding[pair[1]]


def test_equal_texts_under_many_names_are_split_by_themselves(caplog):
    marks = ["".join(marks) for marks in itertools.product(".,;:!?", repeat=3)]
    prompts = [asked(question(1) + mark) for mark in marks]
    found = grouped([*prompts, *(asked(question(n)) for n in range(2, 300))])
    assert not found.representative
    assert (found.num_too_large, found.num_dialogues_too_large) == (1, len(marks))
    assert "near_dialogues_too_large" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_all_of_a_group_share_side_and_half(seed):
    prompts = [
        asked(f"{prefix}{question(number)}") for number in range(200) for prefix in ("", "Well, ")
    ]
    splitter = DialogueSplitter(seed=seed, heldout_fraction=0.3, judge_fraction=0.5)
    alone = [(splitter.side(dialogue_key(p)), splitter.half(dialogue_key(p))) for p in prompts]
    splitter.near = grouped(prompts)
    places = [(splitter.side(dialogue_key(p)), splitter.half(dialogue_key(p))) for p in prompts]
    assert all(places[i] == places[i + 1] for i in range(0, len(places), 2))
    straddled = sum(alone[i] != alone[i + 1] for i in range(0, len(alone), 2))
    assert splitter.num_kept_together() == straddled > 50
    share = np.mean([side == "heldout" for side, _ in places])
    assert share == pytest.approx(0.3, abs=0.15)


def test_what_is_near_a_held_out_file_is_held_out():
    held, near, far = asked(question(1)), asked(f"{question(1)}, please"), asked(question(2))
    splitter = DialogueSplitter(
        seed=0, heldout_fraction=0.0, judge_fraction=0.5, has_heldout_file=True
    )
    splitter.reserved.add(dialogue_key(held))
    splitter.near = grouped([held, near, far], reserved=[held])
    assert splitter.near.beside_reserved == {dialogue_key(near)}
    assert splitter.side(dialogue_key(near)) == "heldout"
    assert splitter.side(dialogue_key(far)) == "train"
    assert splitter.prompt_side(dialogue_key(near)) is None


def test_linked_rows_are_those_that_pairs_connect():
    num_rows = 60
    rng = random.Random(1)
    table = SignatureTable()
    for number in range(num_rows):
        words = question(number % 7).split()
        words[rng.randrange(3)] = rng.choice(WORDS.split())
        table.add(" ".join(words) + f" {rng.choice(WORDS.split())}")
    signatures = table.array()
    near = (signatures[:, None] == signatures[None]).mean(axis=2) >= 0.6
    label = np.arange(num_rows)
    for _ in range(num_rows):
        merged = np.where(near, label[None], num_rows).min(axis=1)
        if (merged == label).all():
            break
        label = merged
    expected = {tuple(np.flatnonzero(label == one).tolist()) for one in set(label.tolist())}
    found = {tuple(group.tolist()) for group in linked([signatures], 0.6)}
    assert found == {group for group in expected if len(group) > 1}
