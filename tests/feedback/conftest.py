import pytest
import yaml

from rlhf_core.adapters import http_client
from rlhf_core.config import load_config
from rlhf_core.feedback.collection import (
    MANIFEST,
    ORIGINS,
    PAIRS,
    Collection,
    Counts,
    Origin,
    SampledModel,
    SamplingSettings,
)
from rlhf_core.schema import Comparison, Message
from rlhf_core.storage.records import sha256_of, write_records

SETTINGS = {
    "model": {"base": "base"},
    "data": {"preferences": {"path": "raw.jsonl"}, "votes": {"num_resamples": 80}},
    "policy": {"algorithm": "ppo"},
    "gates": {"sft": [], "reward": [], "policy": []},
}


def make_pair(number, name="abc", a="short", b="a longer answer"):
    return Comparison(
        comparison_id=f"{name}-{number:05d}",
        prompt=(Message(role="user", content=f"Question {number}?"),),
        response_a=f"{number} {a}",
        response_b=f"{number} {b}",
        votes=(),
        source=f"collected-{name}",
        line=number,
    )


def make_collection(output, size=6, models=("models:/rlhf-policy/3",), name="abc"):
    """Write a collection whose second answers are the longer ones; return its folder."""
    folder = output / name
    pairs = [make_pair(number, name) for number in range(1, size + 1)]
    write_records(folder / PAIRS, pairs)
    origins = [
        Origin(
            comparison_id=pair.comparison_id,
            prompt_id=f"p{pair.line}",
            model_a=models[0],
            model_b=models[-1],
        )
        for pair in pairs
    ]
    write_records(folder / ORIGINS, origins)
    collection = Collection(
        collection_id=name,
        models=tuple(SampledModel(uri=uri, version="3", sha256="f" * 64) for uri in models),
        prompts="prompts.jsonl",
        prompts_sha256="a" * 64,
        dataset_sha256="b" * 64,
        settings=SamplingSettings(
            num_prompts=size,
            temperature=1.0,
            max_new_tokens=8,
            max_prompt_tokens=56,
            max_resamples=3,
            seed=0,
        ),
        counts=Counts(
            prompts=size, heldout=0, unfitting=0, asked=size, resampled=0, indistinct=0,
            unfinished=0, pairs=size,
        ),
        pairs_sha256=sha256_of(folder / PAIRS),
        git_commit=None,
    )  # fmt: skip
    (folder / MANIFEST).write_text(collection.model_dump_json())
    return folder


@pytest.fixture
def pair():
    return make_pair(1)


@pytest.fixture
def collection(tmp_path):
    return make_collection(tmp_path / "collected")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    monkeypatch.setattr(http_client, "FIRST_PAUSE_SECONDS", 0.01)

    def make(labeler, **changes):
        feedback = {"output": str(tmp_path / "collected"), "labeler": labeler, **changes}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**SETTINGS, "feedback": feedback}))
        return load_config(path)

    return make
