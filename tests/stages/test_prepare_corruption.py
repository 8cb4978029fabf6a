"""A seeded corrupter breaks a clean dataset in many ways; each is caught by its own reason."""

import copy
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlhf_core.config import PipelineConfig
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.dataprep.split import DialogueSplitter
from rlhf_core.schema import Message
from rlhf_core.stages.prepare import prepare_data

HELDOUT = 0.2
BASE = Path(__file__).parents[2] / "data" / "base"
NOUNS = [
    f"{a}{b}"
    for a in ("lib", "mar", "pol", "tor", "sen", "gar")
    for b in ("ry", "ket", "is", "den", "ox")
]
SMALL = [
    "the",
    "of",
    "and",
    "to",
    "is",
    "in",
    "that",
    "it",
    "for",
    "you",
    "with",
    "as",
    "are",
    "this",
    "be",
    "have",
    "not",
    "on",
    "was",
    "from",
]
GERMAN = "Die Frage ist nicht einfach und ich kann sie auch mit dem Buch nicht für dich lösen."
QUESTION = "which of these seven famous bridges was the first to cross the river"


def sentence(rng: random.Random, num_words: int = 14) -> str:
    """English to the eye of a rule: small words among made-up nouns."""
    return " ".join(rng.choice(NOUNS if rng.random() < 0.5 else SMALL) for _ in range(num_words))


def row(rng: random.Random, number: int) -> dict:
    return {
        "comparison_id": f"clean-{number}",
        "prompt": [{"role": "user", "content": f"{sentence(rng)} {number}?"}],
        "response_a": f"{sentence(rng)} {number}.",
        "response_b": f"{sentence(rng)}.",
        "votes": [{"annotator": f"w{i}", "choice": "a" if number % 2 else "b"} for i in range(3)],
    }


def side(prompt: str) -> str:
    """The side of the split that a prompt falls on in this test."""
    splitter = DialogueSplitter(seed=0, heldout_fraction=HELDOUT, judge_fraction=0.5)
    return splitter.side(dialogue_key((Message(role="user", content=prompt),)))


class Corrupter:
    """Damages copies of clean rows. Every method is one kind of damage, named as its reason."""

    def __init__(self, rows: list[dict], heldout: list[str], seed: int) -> None:
        self.rng = random.Random(seed)
        self.rows, self.heldout = rows, heldout

    def fresh(self) -> dict:
        return row(self.rng, self.rng.randrange(10_000, 99_999))

    def prompt(self, text: str) -> dict:
        return {**self.fresh(), "prompt": [{"role": "user", "content": text}]}

    def response(self, text: str) -> dict:
        side = self.rng.choice(["response_a", "response_b"])
        return {**self.fresh(), side: text}

    def empty_prompt(self) -> dict:
        return self.prompt(" \n")

    def prompt_not_by_user(self) -> dict:
        return {**self.fresh(), "prompt": [{"role": "assistant", "content": "Hello."}]}

    def empty_response(self) -> dict:
        return self.response(self.rng.choice(["", " ", "\n\t"]))

    def identical_responses(self) -> dict:
        return {**self.fresh(), "response_a": "the same of it", "response_b": " the same of it"}

    def no_votes(self) -> dict:
        return {**self.fresh(), "votes": []}

    def tie(self) -> dict:
        choices = self.rng.choice([["a", "b"], ["tie"], ["a", "b", "tie"]])
        votes = [{"annotator": f"w{i}", "choice": choice} for i, choice in enumerate(choices)]
        return {**self.fresh(), "votes": votes}

    def exact_duplicate(self) -> dict:
        found = copy.deepcopy(self.rng.choice(self.rows[100:150]))
        found["prompt"][0]["content"] = found["prompt"][0]["content"].upper()
        return found

    def near_duplicate(self) -> dict:
        found = copy.deepcopy(self.rng.choice(self.rows[150:200]))
        found["response_a"] += " indeed"
        return found

    def votes_pooled(self) -> dict:
        found = copy.deepcopy(self.rng.choice(self.rows[50:100]))
        for vote in found["votes"]:
            vote["annotator"] = f"second-{vote['annotator']}"
        return found

    def conflicting_labels(self) -> dict:
        found = copy.deepcopy(self.rows[self.rng.randrange(200, 250)])
        for vote in found["votes"]:
            vote["choice"] = "a" if vote["choice"] == "b" else "b"
        return found

    def prompt_is_heldout(self) -> dict:
        return self.prompt(f" {self.rng.choice(self.heldout).upper()} ")

    def prompt_near_heldout(self) -> dict:
        text = self.rng.choice(self.heldout)
        polite = (self.prompt(f"{text} {word}") for word in ("please", "now", "thanks", "again"))
        return next(found for found in polite if side(found["prompt"][0]["content"]) == "train")

    def benchmark_contamination(self) -> dict:
        return self.response(f"the answer is that {QUESTION} of all")

    def wrong_language(self) -> dict:
        return self.response(GERMAN)

    def personal_data_email(self) -> dict:
        return self.response("write to jane.doe@mail.example.org for it")

    def personal_data_phone(self) -> dict:
        return self.prompt("is this the one of +49 30 9018 2034 or not")

    def personal_data_secret(self) -> dict:
        return self.response("it is AKIAIOSFODNN7EXAMPLE as you have it")

    def too_long(self) -> dict:
        return self.response(sentence(self.rng, 2_000))

    def not_renderable(self, special: str) -> dict:
        return self.response(f"it ends {special} here")


KINDS = [
    name
    for name in vars(Corrupter)
    if not name.startswith("_") and name not in ("fresh", "prompt", "response")
]


def reason_of(kind: str) -> str:
    return "personal_data" if kind.startswith("personal_data") else kind


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Prepare 400 clean rows with three of every kind of damage mixed in."""
    if not BASE.is_dir():
        pytest.skip(f"no base model at {BASE}")
    folder = tmp_path_factory.mktemp("corrupted")
    rng = random.Random(0)
    clean = [row(rng, number) for number in range(400)]
    heldout = [f"{sentence(rng)} held {number}?" for number in range(30)]
    corrupter = Corrupter(clean, heldout, seed=1)
    special = json.loads((BASE / "tokenizer_config.json").read_text())["eos_token"]
    special = special["content"] if isinstance(special, dict) else special
    expected, rows = {}, list(clean)
    for kind in KINDS:
        for number in range(3):
            damage = getattr(corrupter, kind)
            bad = damage(special) if kind == "not_renderable" else damage()
            bad["comparison_id"] = f"{kind}-{number}"
            expected[bad["comparison_id"]] = reason_of(kind)
            rows.insert(rng.randrange(260, len(rows) + 1), bad)

    def write(name: str, items: list[dict]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return str(path)

    (folder / "benchmark.txt").write_text(QUESTION + "\n")
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(BASE), "max_length": 512},
            "policy": {"algorithm": "ppo"},
            "gates": {"sft": [], "reward": [], "policy": []},
            "data": {
                "preferences": {"path": write("pairs.jsonl", rows)},
                "prompts": {
                    "heldout_path": write("heldout.jsonl", [{"prompt": p} for p in heldout])
                },
                "output": str(folder / "prepared"),
                "heldout_fraction": HELDOUT,
                "near_dialogues": None,  # a prompt near a held-out one would be held out with it
                "cleaning": {
                    "near_duplicates": 0.8,
                    "contamination": [str(folder / "benchmark.txt")],
                    "languages": ["en"],
                    "personal_data": ["email", "phone", "secret"],
                },
            },
        }
    )
    splits = prepare_data(config)
    quarantine = pq.read_table(splits.directory / "quarantine.parquet").to_pylist()
    return rows, expected, quarantine, json.loads(splits.report.read_text())


def test_there_are_at_least_fifteen_kinds():
    assert len(KINDS) >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_damage_is_caught_by_its_own_reason(damaged, kind):
    _, expected, quarantine, _ = damaged
    found = {row["row_id"]: row["reason"] for row in quarantine}
    for row_id in (name for name in expected if name.rsplit("-", 1)[0] == kind):
        assert found.get(row_id) == expected[row_id]


def test_no_clean_row_is_lost_but_the_other_half_of_a_contradiction(damaged):
    _, _, quarantine, _ = damaged
    clean = [row for row in quarantine if row["row_id"].startswith("clean")]
    assert {row["reason"] for row in clean} == {"conflicting_labels"}
    assert len(clean) <= 3


def test_rows_in_are_rows_kept_and_rows_set_aside_with_their_lines(damaged):
    rows, _, quarantine, report = damaged
    counts = report["inputs"]["preferences"]
    aside = [row for row in quarantine if row["input"] == "preferences"]
    assert counts["rows"] == len(rows) == counts["kept"] + len(aside)
    assert sum(counts["set_aside"].values()) == len(aside)
    for row in aside:
        assert rows[row["line"] - 1]["comparison_id"] == row["row_id"]
        assert json.loads(row["row"])["comparison_id"] == row["row_id"]
