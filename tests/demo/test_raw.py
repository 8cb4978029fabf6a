"""The raw files as shipped: reproducible, valid, and with evaluation kept apart."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_core.demo import raw
from rlhf_core.demo.claims import claims_in
from rlhf_core.demo.facts import NUM_HELDOUT_FACTS, town
from rlhf_core.demo.gold import rate
from rlhf_core.demo.questions import HELDOUT_STYLES, STYLE_WEIGHTS
from rlhf_core.demo.raw import is_reserved, write_raw
from rlhf_core.demo.reading import read_intent, words_of
from rlhf_core.schema import Comparison, Conversation, Demonstration, Prompt

SHIPPED = Path(__file__).parents[2] / "data" / "raw"
NAMES = ("demonstrations", "comparisons", "prompts", "heldout_prompts")


def lines(name: str) -> Iterator[str]:
    yield from (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def demonstrations() -> list[Demonstration]:
    return [Demonstration.model_validate_json(line) for line in lines("demonstrations")]


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return [Comparison.model_validate_json(line) for line in lines("comparisons")]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [Prompt.model_validate_json(line) for line in lines("prompts")]


@pytest.fixture(scope="module")
def heldout() -> list[Prompt]:
    return [Prompt.model_validate_json(line) for line in lines("heldout_prompts")]


@pytest.fixture(scope="module")
def training_prompts(demonstrations, comparisons, prompts) -> set[Conversation]:
    return {row.prompt for rows in (demonstrations, comparisons, prompts) for row in rows}


@pytest.mark.nightly
def test_the_shipped_files_are_what_the_build_makes(tmp_path):
    write_raw(tmp_path)
    for name in NAMES:
        made, shipped = (
            hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()
            for folder in (tmp_path, SHIPPED)
        )
        assert made == shipped, name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.jsonl" for n in NAMES)


def test_another_seed_makes_other_files(tmp_path, monkeypatch):
    for name in ("NUM_DEMONSTRATIONS", "NUM_COMPARISONS", "NUM_PROMPTS"):  # not looked at
        monkeypatch.setattr(raw, name, 9)
    write_raw(tmp_path, seed=1)
    made = (tmp_path / "heldout_prompts.jsonl").read_bytes()
    assert made != (SHIPPED / "heldout_prompts.jsonl").read_bytes()


def test_there_is_as_much_as_promised(demonstrations, comparisons, prompts, heldout):
    assert len(demonstrations) >= 2_000
    assert len(comparisons) >= 4_000
    assert len(prompts) >= 2_000
    assert len(heldout) >= 500
    assert sum((SHIPPED / f"{name}.jsonl").stat().st_size for name in NAMES) < 6_000_000


def test_ids_are_unique(demonstrations, comparisons, prompts, heldout):
    ids = [
        *(row.demonstration_id for row in demonstrations),
        *(row.comparison_id for row in comparisons),
        *(row.prompt_id for row in (*prompts, *heldout)),
    ]
    assert len(ids) == len(set(ids))


def test_no_heldout_prompt_is_ever_trained_on(heldout, training_prompts):
    assert not {row.prompt for row in heldout} & training_prompts
    assert all(is_reserved(row.prompt) for row in heldout)
    assert not any(is_reserved(prompt) for prompt in training_prompts)


def test_heldout_facts_are_never_asked_in_training(heldout, training_prompts):
    asked = {slot for prompt in training_prompts for slot in read_intent(prompt).slots}
    assert asked == set(town().facts) - town().heldout
    assert len(town().heldout) == NUM_HELDOUT_FACTS
    evaluated = {slot for row in heldout for slot in read_intent(row.prompt).slots}
    assert town().heldout <= evaluated


def test_no_answer_in_training_states_a_heldout_fact(demonstrations, comparisons):
    rows = [(row.prompt, row.response) for row in demonstrations]
    rows += [(row.prompt, text) for row in comparisons for text in (row.response_a, row.response_b)]
    stated = {
        (claim.place, claim.topic)
        for prompt, response in rows
        for claim in claims_in(response.rstrip("."), read_intent(prompt))
        if claim.true
    }
    assert not stated & town().heldout


def test_tags_say_style_and_whether_the_fact_is_new(prompts, heldout):
    assert {row.tags["style"] for row in prompts} == set(STYLE_WEIGHTS)
    assert {row.tags["style"] for row in heldout} == {*STYLE_WEIGHTS, *HELDOUT_STYLES}
    assert {row.tags["facts"] for row in prompts} == {"seen"}
    for row in heldout:
        new = any(slot in town().heldout for slot in read_intent(row.prompt).slots)
        assert row.tags["facts"] == ("heldout" if new else "seen")
    styles = Counter(row.tags["style"] for row in heldout)
    assert min(styles.values()) >= 20


def test_every_comparison_has_three_votes_of_different_people(comparisons):
    for row in comparisons:
        assert len({vote.annotator for vote in row.votes}) == len(row.votes) == 3
        assert row.response_a != row.response_b
        assert all(vote.seconds and vote.seconds > 0 for vote in row.votes)
    assert len({vote.annotator for row in comparisons for vote in row.votes}) == 5


def test_demonstrations_are_good_but_leave_room_for_better(demonstrations):
    scores = [rate(row.prompt, row.response)["score"] for row in demonstrations]
    flawless = sum(score > 0.999 for score in scores) / len(scores)
    assert 0.6 < sum(scores) / len(scores) < 0.8
    assert 0.15 < flawless < 0.35


def test_answers_are_short_and_made_of_known_sentences(demonstrations, comparisons):
    rows = [(row.prompt, row.response) for row in demonstrations]
    rows += [(row.prompt, text) for row in comparisons for text in (row.response_a, row.response_b)]
    assert max(len(words_of(response)) for _, response in rows) <= 28
    assert not any(rate(prompt, response)["incoherence"] for prompt, response in rows)


def test_the_best_answer_is_no_longer_than_the_usual_one(demonstrations):
    lengths = [len(words_of(row.response)) for row in demonstrations]
    flawless = [
        len(words_of(row.response))
        for row in demonstrations
        if rate(row.prompt, row.response)["score"] > 0.999
    ]
    assert sum(flawless) / len(flawless) < 1.1 * sum(lengths) / len(lengths)
