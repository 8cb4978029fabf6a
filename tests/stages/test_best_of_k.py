import json

import numpy as np
import pytest

from rlhf_core.errors import DataError
from rlhf_core.stages.evaluate import evaluate_reward
from rlhf_core.stages.evaluation.best_of_k import credit, read_choices
from rlhf_core.stages.models.scoring import score_texts

ROWS = [
    {"id": "1", "prompt": "When does the zoo open?", "chosen": ["At nine."],
     "rejected": ["No idea.", "It is blue.", "Never."], "subset": "Facts", "num_correct": 1},
    {"id": "2", "prompt": "Where is the pool?", "chosen": "On King Square.",
     "rejected": ["Mars."], "subset": "Focus"},
    {"id": "3", "prompt": "Name a colour.", "chosen": ["Red.", "Blue."], "rejected": ["Two."],
     "subset": "Ties"},
]  # fmt: skip


@pytest.fixture
def choices(tmp_path):
    def written(rows):
        path = tmp_path / "best.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def test_the_right_answer_has_to_score_highest_and_shares_what_is_equal():
    assert credit(np.array([2.0, 1.0, 0.0])) == 1.0
    assert credit(np.array([1.0, 2.0])) == 0.0
    assert credit(np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(1 / 3)


def test_rows_with_several_right_answers_are_left_out_and_counted(choices):
    rows, several = read_choices(choices(ROWS))
    assert [(row.answers[0], len(row.answers), row.subset) for row in rows] == [
        ("At nine.", 4, "Facts"), ("On King Square.", 2, "Focus"),
    ]  # fmt: skip
    assert several == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": ["b"]}, "line 1.*rejected"),
        ({"prompt": "a", "chosen": ["b"], "rejected": []}, "line 1: rejected: expected"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c", "b"]}, "both in chosen and"),
        ({"prompt": "a", "chosen": ["b", "d"], "rejected": ["c"]}, "no row with one right answer"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(row, says, choices):
    with pytest.raises(DataError, match=says):
        read_choices(choices([row]))


def test_a_reward_model_is_measured_and_gated_on_it(
    four_models, stage_config, stage_context, small_splits, choices
):
    config = stage_config()
    gate = {"metric": "reward/best_of_k_accuracy", "at_least": 0.3, "min_samples": 2}
    raw = config.model_dump() | {"gates": {**config.gates.model_dump(), "reward": [gate]}}
    raw["evaluation"] |= {"best_of_k": choices(ROWS)}
    config = type(config).model_validate(raw)
    reward = four_models["reward"]
    result = evaluate_reward(config, small_splits, reward, stage_context)
    right = []
    for row in read_choices(config.evaluation.best_of_k)[0]:
        scores = score_texts(
            reward.path, [row.prompt], [[text] for text in row.answers], budget=500
        )
        right.append(float(np.argmax(np.concatenate(scores)) == 0))
    measured = result.report.metrics["reward/best_of_k_accuracy"]
    assert (measured.value, measured.num_samples) == (np.mean(right), 2)
    by_subset = result.report.breakdown["subset=Facts"]["reward/best_of_k_accuracy"]
    assert by_subset.value == right[0]
    assert "2 of 3 rows, chance 0.375" in result.report.units
    assert result.decision.results[0].gate == "reward/best_of_k_accuracy"
