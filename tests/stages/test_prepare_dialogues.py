"""No dialogue lies on both sides of the split, whichever of its turns the rows are."""

import json
import logging
import random
from itertools import chain
from pathlib import Path

import pytest

from rlhf_core.dataprep.cleaning.signatures import signature, similarity
from rlhf_core.dataprep.keys import DialogueKey, conversation_key, normalise
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.errors import DataError
from rlhf_core.schema import DatasetSplits, Demonstration, Message, PreferencePair, Prompt
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import read_records
from tests.stages.prepare_helpers import make_config, write

KINDS = {
    "demonstrations": Demonstration,
    "reward": PreferencePair,
    "judge": PreferencePair,
    "prompts": Prompt,
}
Turns = tuple[tuple[str, str], ...]


def row(number: int, prompt: list[dict] | str) -> dict:
    return {
        "prompt": prompt,
        "response_a": f"Answer {number}.",
        "response_b": f"I do not know {number}.",
        "votes": [{"annotator": "ann", "choice": "ab"[number % 2]}],
    }


def dialogue(number: int, num_turns: int, first: str | None = None) -> list[dict]:
    """A transcript of ``num_turns`` questions; every third dialogue has a system message."""
    turns = [{"role": "system", "content": f"Desk {number}."}] if number % 3 == 0 else []
    for turn in range(num_turns):
        told = first if first and not turn else f"Question {turn} of visitor {number}?"
        turns += [
            {"role": "user", "content": told},
            {"role": "assistant", "content": f"Reply {turn}."},
        ]
    return turns[:-1]


def mixture(num_dialogues: int, seed: int) -> list[list[dict]]:
    """Prompts of one to four turns, several of most dialogues, in any order."""
    rng = random.Random(seed)
    prompts = [
        dialogue(number, turns)
        for number in range(num_dialogues)
        for turns in rng.sample(range(1, 5), rng.randint(1, 4))
    ]
    rng.shuffle(prompts)
    return prompts


def prompts_in(splits: DatasetSplits, *names: str) -> set[Turns]:
    rows = chain.from_iterable(
        read_records(getattr(splits, name), KINDS[name.split("_")[0]]) for name in names
    )
    return {tuple((turn.role, normalise(turn.content)) for turn in row.prompt) for row in rows}


def begins(prompt: Turns) -> Turns:
    """The first user turn: prompts that contain one another share it."""
    return next((turn,) for turn in prompt if turn[0] == "user")


def on_both(one: set[Turns], other: set[Turns]) -> set[Turns]:
    return {begins(prompt) for prompt in one} & {begins(prompt) for prompt in other}


def one_by_one(prompt: Turns) -> str:
    """The side of a prompt that were split by all its turns, as a tenth is held out."""
    key = conversation_key(tuple(Message(role=role, content=text) for role, text in prompt))
    return DialogueSplitter(0, heldout_fraction=0.1, judge_fraction=0.5).side(DialogueKey(key))


def sides(splits: DatasetSplits) -> tuple[set[Turns], set[Turns]]:
    train, heldout = (
        prompts_in(splits, *(f"{kind}_{side}" for kind in KINDS)) for side in ("train", "heldout")
    )
    return train, heldout


def halves(splits: DatasetSplits) -> tuple[set[Turns], set[Turns]]:
    reward, judge = (
        prompts_in(splits, f"{half}_train", f"{half}_heldout") for half in ("reward", "judge")
    )
    return reward, judge


@pytest.mark.parametrize("seed", range(3))
def test_no_dialogue_is_on_both_sides_or_in_both_halves(tmp_path, seed):
    rows = [row(number, prompt) for number, prompt in enumerate(mixture(120, seed))]
    write(tmp_path / "pairs.jsonl", rows)
    splits = prepare_data(make_config(tmp_path))
    assert not on_both(*sides(splits))
    assert not on_both(*halves(splits))
    report = json.loads(splits.report.read_text())["dialogues"]
    assert report["pairs"]["dialogues"] == 120
    assert report["pairs"]["rows"] == len(rows)
    assert set(report) == {"demonstrations", "pairs", "prompts"}


def test_a_question_is_on_one_side_whichever_file_has_a_system_message(tmp_path):
    """Here none, there one, and there another every day."""
    asked = [{"role": "user", "content": f"Question of visitor {n}?"} for n in range(200)]
    write(tmp_path / "pairs.jsonl", [row(n, [one]) for n, one in enumerate(asked)])
    told = {"role": "system", "content": "You are a helpful assistant."}
    write(tmp_path / "d.jsonl", [{"prompt": [told, one], "response": "Yes."} for one in asked])
    days = [{"role": "system", "content": f"Today is day {n}."} for n in range(200)]
    rows = [{"prompt": [day, one]} for day, one in zip(days, asked, strict=True)]
    write(tmp_path / "p.jsonl", rows)
    splits = prepare_data(
        make_config(
            tmp_path,
            demonstrations={"path": str(tmp_path / "d.jsonl")},
            prompts={"path": str(tmp_path / "p.jsonl")},
            heldout_fraction=0.3,
        )
    )
    train, heldout = sides(splits)
    assert min(len(train), len(heldout)) > 50
    assert not on_both(train, heldout)


def test_a_user_turn_that_all_share_behind_system_messages_that_ask_is_told(tmp_path, caplog):
    prompts = [
        [{"role": "system", "content": f"Answer question {n}."}, {"role": "user", "content": text}]
        for n in range(400)
        for text in [f"Go {n}" if n % 2 else "Go"]
    ]
    write(tmp_path / "pairs.jsonl", [row(n, prompt) for n, prompt in enumerate(prompts)])
    prepare_data(make_config(tmp_path))
    assert "the largest of 200, which begins 'Go'" in caplog.text


def test_files_of_their_own_keep_to_the_same_sides(tmp_path):
    """The held-out file has other turns of some dialogues than the files that train."""
    prompts = mixture(150, seed=3)
    write(tmp_path / "pairs.jsonl", [row(i, prompt) for i, prompt in enumerate(prompts)])
    demonstrations = [{"prompt": p, "response": "Yes."} for p in mixture(150, seed=4)]
    write(tmp_path / "d.jsonl", demonstrations)
    write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in mixture(150, seed=5)])
    write(tmp_path / "h.jsonl", [{"prompt": dialogue(number, 5)} for number in range(20)])
    splits = prepare_data(
        make_config(
            tmp_path,
            demonstrations={"path": str(tmp_path / "d.jsonl")},
            prompts={"path": str(tmp_path / "p.jsonl"), "heldout_path": str(tmp_path / "h.jsonl")},
        )
    )
    assert not on_both(*sides(splits))
    assert not on_both(*halves(splits))
    assert len(prompts_in(splits, "prompts_heldout")) == 20
    inputs = json.loads(splits.report.read_text())["inputs"]
    for name in ("preferences", "demonstrations", "prompts"):
        assert inputs[name]["set_aside"]["prompt_is_heldout"] > 20


def test_a_dialogue_that_opens_nearly_as_a_heldout_one_does_not_train(tmp_path):
    """Later turns make two prompts differ much, though the dialogue is nearly the same one."""

    def first(number: int) -> str:
        return f"I would like to know of room {number} of the old castle when it opens on Sunday"

    rows = [
        row(number, dialogue(1, turns, first=f"{first(number // 2)}{' please' * (number % 2)}"))
        for number in range(300)
        for turns in ([4] if number % 2 else [1])
    ]
    write(tmp_path / "pairs.jsonl", rows)
    cleaning = {"tokens": False, "near_duplicates": 0.8}
    splits = prepare_data(make_config(tmp_path, cleaning=cleaning, heldout_fraction=0.3))
    train, heldout = (
        [signature(begins(prompt)[-1][1]) for prompt in side] for side in sides(splits)
    )
    assert min(len(train), len(heldout)) > 50
    assert not [1 for one in train for other in heldout if similarity(one, other) >= 0.8]


def test_a_first_turn_that_all_dialogues_share_is_refused_by_name(tmp_path):
    rows = [row(i, dialogue(3 * i + 1, 1 + i % 4, first="Hi")) for i in range(400)]
    write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError) as raised:
        prepare_data(make_config(tmp_path))
    message = str(raised.value)
    assert "no rows for" in message
    assert "pairs are one dialogue" in message
    assert "which begins 'Hi'" in message
    assert "leave out a first turn" in message
    assert "\n" not in message


def test_a_first_turn_that_most_dialogues_share_is_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="rlhf_core")
    rows = [
        row(i, dialogue(3 * i + 1, 2, first="Good  morning" if i % 2 else None)) for i in range(400)
    ]
    write(tmp_path / "pairs.jsonl", rows)
    splits = prepare_data(make_config(tmp_path))
    [told] = [record.getMessage() for record in caplog.records if "large_dialogue" in record.msg]
    assert (
        "the 400 pairs are 201 dialogues, the largest of 200, which begins 'Good morning'" in told
    )
    assert not on_both(*sides(splits))
    caplog.clear()
    write(tmp_path / "pairs.jsonl", [row(i, dialogue(i, 2)) for i in range(400)])
    prepare_data(make_config(tmp_path))
    assert "large_dialogue" not in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["helpful-base", "harmless-base"])
def test_published_transcripts_share_no_dialogue(tmp_path, name):
    """Split prompt by prompt, one held-out prompt in eight would be of a dialogue that trains."""
    path = Path(__file__).parents[3] / "shared" / "data" / "hh" / f"{name}.test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    splits = prepare_data(make_config(tmp_path, preferences={"path": str(path), "format": "hh"}))
    train, heldout = sides(splits)
    assert len(heldout) > 200
    assert not on_both(train, heldout)
    assert not on_both(*halves(splits))
    apart = {"train": set(), "heldout": set()}
    for prompt in train | heldout:
        apart[one_by_one(prompt)].add(prompt)
    torn = on_both(*apart.values())
    leaked = sum(begins(prompt) in torn for prompt in apart["heldout"])
    assert 0.11 < leaked / len(apart["heldout"]) < 0.14
