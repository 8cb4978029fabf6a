"""The split is a property of the prompt, not of the file around it."""

from rlhf_core.dataprep.keys import conversation_key, text_key, unit_interval
from rlhf_core.dataprep.split import PromptSplitter
from rlhf_core.schema import Message

KEYS = [text_key(str(i)) for i in range(20_000)]


def splitter(seed=0, **changes):
    return PromptSplitter(
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
