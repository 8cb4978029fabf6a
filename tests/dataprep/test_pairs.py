"""Chosen and rejected as TRL, UltraFeedback and Argilla publish them."""

import pytest

from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import DataError
from tests.dataprep.test_formats import GOOD, TURNS, read, winner

BAD = [{"role": "assistant", "content": "bad"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "chosen": "good", "rejected": "bad"},
        {"prompt": TURNS, "chosen": GOOD, "rejected": BAD},
        {"chosen": TURNS + GOOD, "rejected": TURNS + BAD},
        {"prompt": "Q?", "chosen": TURNS + GOOD, "rejected": TURNS + BAD, "source": "ultra"},
        {"prompt": TURNS, "chosen": TURNS + GOOD, "rejected": TURNS + BAD, "extra": 1},
        {
            "chosen": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "good"}],
            "rejected": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "bad"}],
        },
    ],
)
def test_every_shape_of_chosen_and_rejected_is_one_comparison(write_jsonl, row):
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    assert [turn.content for turn in item.prompt] == ["Q?"]
    assert winner(item) == "good"
    assert {item.response_a, item.response_b} == {"good", "bad"}


SYSTEM = [{"role": "system", "content": "Be nice."}]
SPACED = [{"role": "user", "content": "Q? \n"}]
LONG = [*TURNS, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "So?"}]


@pytest.mark.parametrize(
    ("prompt", "lead", "contents"),
    [
        (SYSTEM + TURNS, TURNS, ["Be nice.", "Q?"]),
        (TURNS, SYSTEM + TURNS, ["Be nice.", "Q?"]),
        ("Q?", SYSTEM + TURNS, ["Be nice.", "Q?"]),
        (SYSTEM, TURNS, ["Be nice.", "Q?"]),
        (SPACED, TURNS, ["Q?"]),
        (TURNS, LONG, ["Q?", "Hm.", "So?"]),
        ("Q?", SYSTEM + LONG, ["Be nice.", "Q?", "Hm.", "So?"]),
        (LONG, LONG[-1:], ["Q?", "Hm.", "So?"]),
        (SYSTEM + TURNS, LONG, ["Be nice.", "Q?", "Hm.", "So?"]),
        (LONG[:2], LONG[2:], ["Q?", "Hm.", "So?"]),
        (LONG[:1], LONG[1:], ["Q?", "Hm.", "So?"]),
        ([], TURNS, ["Q?"]),
    ],
)
def test_a_prompt_given_twice_is_read_once(write_jsonl, prompt, lead, contents):
    row = {"prompt": prompt, "chosen": lead + GOOD, "rejected": lead + BAD}
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    assert [turn.content for turn in item.prompt] == contents


@pytest.mark.parametrize(
    ("prompt", "lead"), [("You are a pirate.", TURNS), (LONG[-1:], TURNS), (TURNS, SYSTEM)]
)
def test_a_prompt_that_is_another_than_the_turns_is_filtered_out(write_jsonl, prompt, lead):
    row = {"prompt": prompt, "chosen": lead + GOOD, "rejected": lead + BAD}
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    assert (item.reason, item.line) == ("malformed_transcript", 1)
    assert item.detail == "prompt and turns do not fit"


@pytest.mark.parametrize("end", ["", "\n<extra_id_1>Assistant\n"])
def test_turns_after_the_marks_of_helpsteer_are_turns(write_jsonl, end):
    asked = "Hello.\n<extra_id_1>Assistant\nYes?\n\n- one\n<extra_id_1>User\nQuestion?" + end
    row = {"prompt": asked, "chosen": "good", "rejected": "bad"}
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    turns = [(turn.role, turn.content) for turn in item.prompt]
    assert turns == [("user", "Hello."), ("assistant", "Yes?\n\n- one"), ("user", "Question?")]


@pytest.mark.parametrize("text", ["What is <extra_id_1>?", "a\n<extra_id_1>Assistant\nb"])
def test_a_mark_of_helpsteer_without_turns_is_text(write_jsonl, text):
    row = {"prompt": text, "chosen": "good", "rejected": "bad"}
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    assert [(turn.role, turn.content) for turn in item.prompt] == [("user", text)]


def test_a_mark_of_helpsteer_within_a_transcript_is_text(write_jsonl):
    asked = "\n\nHuman: What is <extra_id_1>?\n\nAssistant:"
    row = {"prompt": asked, "chosen": "good", "rejected": "bad"}
    [item] = read(write_jsonl("pairs.jsonl", [row]), format="pairs")
    assert [(turn.role, turn.content) for turn in item.prompt] == [
        ("user", "What is <extra_id_1>?")
    ]


def test_scores_behind_a_choice_are_its_strength_and_equal_scores_a_tie(write_jsonl):
    row = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}
    path = write_jsonl(
        "pairs.jsonl",
        [
            {**row, "score_chosen": 9.0, "score_rejected": 6.5},
            {**row, "chosen-rating": 4, "rejected-rating": 4},
            {**row, "score_chosen": None, "score_rejected": 1},
            {**row, "rating_chosen": 4, "rating_rejected": 4},
        ],
    )
    first, second, third, fourth = (item.votes[0] for item in read(path, format="pairs"))
    assert (first.strength, first.choice != "tie") == (2.5, True)
    assert (second.strength, second.choice) == (0, "tie")
    assert third.strength is None
    assert fourth.choice == "tie"
    bad = write_jsonl("bad.jsonl", [{**row, "score_chosen": 1, "score_rejected": 2}])
    with pytest.raises(DataError, match="line 1: score_chosen 1 is below score_rejected 2"):
        read(bad, format="pairs")


def test_scores_written_as_text_are_scores(tmp_path, write_jsonl):
    path = tmp_path / "pairs.csv"
    head = "prompt,chosen,rejected,score_chosen,score_rejected"
    path.write_text(f"{head}\nq,x,y,5,5\nq2,x,y,9,1\nq3,x,y,, \nq4,x,y,-1.5,-2\n")
    votes = [item.votes[0] for item in read(path, format="pairs")]
    assert [vote.strength for vote in votes] == [0, 8, None, 0.5]
    assert [vote.choice == "tie" for vote in votes] == [True, False, False, False]
    with path.open("a") as file:
        file.write("q5,x,y,good,1\n")
    aside = read(path, format="pairs")[-1]
    assert (aside.line, aside.detail) == (6, "score_chosen: expected a number, found 'good'")
    row = {"prompt": "Q?", "chosen": "good", "rejected": "bad", "score_rejected": 1}
    [item] = read(write_jsonl("nan.jsonl", [{**row, "score_chosen": float("nan")}]), format="pairs")
    assert item.votes[0].strength is None


def test_a_margin_beside_a_pair_is_its_strength_where_there_are_no_scores(write_jsonl):
    row = {"prompt": "Q?", "chosen": "good", "rejected": "bad", "margin": 1.5}
    rows = [row, {**row, "score_chosen": 9, "score_rejected": 6}, {**row, "margin": "0"}]
    items = read(write_jsonl("pairs.jsonl", rows), format="pairs")
    assert [item.votes[0].strength for item in items] == [1.5, 3.0, 0]
    assert items[2].votes[0].choice == "tie"
    bad = write_jsonl("bad.jsonl", [{**row, "margin": -1}])
    with pytest.raises(DataError, match="line 1: margin: expected a number >= 0, found -1"):
        read(bad, format="pairs")


def test_pairs_that_are_no_comparison_say_why(write_jsonl):
    rows = [
        {"prompt": "Q?", "chosen": "same", "rejected": "same "},
        {"chosen": TURNS + GOOD, "rejected": [{"role": "user", "content": "R?"}, *BAD]},
        {"chosen": TURNS, "rejected": TURNS + BAD},
    ]
    items = read(write_jsonl("pairs.jsonl", rows), format="pairs")
    assert [item.reason for item in items if isinstance(item, FilteredRow)] == [
        "identical_responses",
        "parts_before_last_turn",
        "malformed_transcript",
    ]
    with pytest.raises(DataError, match="line 1: missing column 'prompt'"):
        read(write_jsonl("x.jsonl", [{"chosen": "a", "rejected": "b"}]), format="pairs")
    null = {"prompt": "Q?", "chosen": None, "rejected": "b"}
    with pytest.raises(DataError, match="chosen: expected text or messages, found NoneType"):
        read(write_jsonl("y.jsonl", [null]), format="pairs")


def test_the_published_winner_is_on_either_side_and_its_id_does_not_tell(write_jsonl):
    rows = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    items = read(write_jsonl("pairs.jsonl", rows), format="pairs")
    assert 150 < sum(item.votes_a for item in items) < 250
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    again = read(write_jsonl("swapped.jsonl", swapped), format="pairs")
    assert [item.comparison_id for item in again] == [item.comparison_id for item in items]
    assert all(winner(item).startswith("bad") for item in again)
