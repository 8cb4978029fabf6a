"""Near-identical prompts do not straddle the split, wherever the held-out one comes from."""

import json
from pathlib import Path

import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.cleaning.prompt_index import prompt_text
from rlhf_core.dataprep.cleaning.signatures import signature, similarity
from rlhf_core.schema import PreferencePair, Prompt
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import read_records

WORDS = ["where", "castle", "river", "bridge", "opens", "seven", "market", "ticket", "before"]
THRESHOLD = 0.8


def prompt(number: int) -> str:
    return " ".join(WORDS[(number // 9**i + i) % 9] for i in range(8)) + f" number {number} or so"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """150 prompts, each also with a word more; only preferences, so every file comes of them."""
    folder = tmp_path_factory.mktemp("near")
    rows = [
        {
            "prompt": text,
            "response_a": f"{number} yes {text[-40:]}",
            "response_b": f"{number} no",
            "votes": [{"annotator": "ann", "choice": "a"}],
        }
        for number in range(150)
        for text in (prompt(number), f"{prompt(number)} please")
    ]
    settings = {
        "model": {"base": "unused"},
        "policy": {"algorithm": "ppo"},
        "gates": {"sft": [], "reward": [], "policy": []},
        "data": {
            "preferences": {"path": write(folder / "pairs.jsonl", rows)},
            "output": str(folder / "prepared"),
            "heldout_fraction": 0.3,
            "near_dialogues": None,  # kept on one side, they would give nothing away
            "cleaning": {"tokens": False, "near_duplicates": THRESHOLD},
        },
    }
    return prepare_data(PipelineConfig.model_validate(settings))


def texts(splits, side: str) -> list[str]:
    pairs = [
        pair.prompt
        for half in ("reward", "judge")
        for pair in read_records(getattr(splits, f"{half}_{side}"), PreferencePair)
    ]
    prompts = [row.prompt for row in read_records(getattr(splits, f"prompts_{side}"), Prompt)]
    return sorted({prompt_text(found) for found in pairs + prompts})


def test_no_training_prompt_is_nearly_a_heldout_one(prepared):
    heldout = [signature(text) for text in texts(prepared, "heldout")]
    train = [signature(text) for text in texts(prepared, "train")]
    assert len(heldout) > 60
    assert len(train) > 100
    assert not [1 for one in train for other in heldout if similarity(one, other) >= THRESHOLD]


def test_what_gave_a_heldout_prompt_away_is_counted(prepared):
    counts = json.loads(prepared.report.read_text())["inputs"]["preferences"]
    assert counts["set_aside"]["prompt_near_heldout"] > 30
    assert counts["rows"] == counts["kept"] + sum(counts["set_aside"].values()) == 300
