"""The split is a property of the dialogue, not of the turn and not of the file around it."""

from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.dataprep.keys import (
    DialogueKey,
    conversation_key,
    dialogue_key,
    text_key,
    unit_interval,
)
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.schema import Message

KEYS = [DialogueKey(text_key(str(i))) for i in range(20_000)]
TEXTS = st.text(max_size=8)
TURNS = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "assistant", "system"]), content=TEXTS),
    max_size=8,
)


def splitter(seed=0, **changes):
    return DialogueSplitter(
        **{"seed": seed, "heldout_fraction": 0.1, "judge_fraction": 0.5, **changes}
    )


def test_the_shares_are_those_asked_for():
    one = splitter()
    heldout = [key for key in KEYS if one.side(key) == "heldout"]
    assert abs(len(heldout) / len(KEYS) - 0.1) < 0.01
    for keys in (KEYS, heldout):
        judge = sum(one.half(key) == "judge" for key in keys) / len(keys)
        assert abs(judge - 0.5) < 0.03


def test_a_seed_decides_and_nothing_else_does():
    sides = [splitter().side(key) for key in KEYS]
    assert sides == [splitter().side(key) for key in reversed(KEYS)][::-1]
    assert sides != [splitter(seed=1).side(key) for key in KEYS]


def prompts_of(dialogue):
    """All prompts that a transcript gives: it up to each of its user turns."""
    return [dialogue[: i + 1] for i, turn in enumerate(dialogue) if turn.role == "user"]


@given(TURNS.map(tuple), st.integers(0, 3), st.sampled_from([0.1, 0.5, 0.9]))
def test_all_turns_of_a_dialogue_lie_on_one_side_and_in_one_half(dialogue, seed, share):
    one = splitter(seed, heldout_fraction=share, judge_fraction=share, has_heldout_file=True)
    keys = [dialogue_key(prompt) for prompt in prompts_of(dialogue)]
    assert len({one.side(key) for key in keys}) <= 1
    assert len({one.half(key) for key in keys}) <= 1
    assert len({one.prompt_side(key) for key in keys}) <= 1


def test_the_turns_of_a_dialogue_would_part_if_each_were_split_by_itself():
    one = splitter(heldout_fraction=0.5)
    asks = [Message(role="user", content=f"Question {i}?") for i in range(10)]
    prompts = prompts_of(asks)
    assert {one.side(conversation_key(prompt)) for prompt in prompts} == {"train", "heldout"}
    assert len({one.side(dialogue_key(prompt)) for prompt in prompts}) == 1


def test_fractions_at_the_ends_mean_none_and_all():
    assert {splitter(heldout_fraction=0.0).side(key) for key in KEYS} == {"train"}
    assert {splitter(judge_fraction=1.0).half(key) for key in KEYS} == {"judge"}
    assert all(0 <= unit_interval(3, "x", key) < 1 for key in KEYS)


def test_a_sampling_prompt_yields_to_heldout_rows():
    one = splitter(reserved={KEYS[0]}, has_heldout_file=True, heldout_fraction=0.5)
    sides = {key: one.side(key) for key in KEYS[1:100]}
    assert one.prompt_side(KEYS[0]) is None
    for key, side in sides.items():
        assert one.prompt_side(key) == ("train" if side == "train" else None)


def test_prompts_that_read_the_same_have_one_key():
    def key(text):
        return conversation_key((Message(role="user", content=text),))

    assert key("Where  IS it?\n") == key("where is it?") == key("\uff37here is it?")
    assert key("where is it?") != key("where is it")


def test_one_rule_is_told_from_another():
    rules = {
        splitter(**changes).rule
        for changes in (
            {},
            {"seed": 1},
            {"heldout_fraction": 0.2},
            {"judge_fraction": 0.4},
            {"reserved": {KEYS[0]}, "has_heldout_file": True},
            {"reserved": {KEYS[1]}, "has_heldout_file": True},
        )
    }
    assert len(rules) == 6


def test_the_rule_is_not_that_of_data_split_by_prompt_or_with_system_messages():
    assert splitter().rule == "by first user turn, seed 0, held out 0.1, judge 0.5"
