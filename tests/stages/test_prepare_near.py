"""Nearly equal prompts at the defaults: on one side, in one half, and counted."""

import json
import random

from rlhf_core.schema import Demonstration, PreferencePair, Prompt
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import iterate_records
from tests.stages.prepare_helpers import make_config, write

WORDS = "amber birch cedar delta ember flint grove haven inlet jetty knoll ledge marsh north"
FILES = ("reward_train", "reward_heldout", "judge_train", "judge_heldout")


def question(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS.split(), k=14))


def row(prompt: str) -> dict:
    return {
        "prompt": prompt,
        "response_a": f"Yes to {prompt}",
        "response_b": f"No to {prompt}",
        "votes": [{"annotator": "ann", "choice": "a"}],
    }


def prepare(tmp_path, asked: list[str], **data) -> dict:
    write(tmp_path / "pairs.jsonl", [row(prompt) for prompt in asked])
    config = make_config(tmp_path, min_pairs=1, **data)
    prepare_data(config)
    return json.loads((tmp_path / "prepared" / "report.json").read_text())


def places(tmp_path) -> dict[str, str]:
    return {
        pair.prompt[0].content: name
        for name in FILES
        for pair in iterate_records(tmp_path / "prepared" / f"{name}.jsonl", PreferencePair)
    }


def test_near_prompts_share_a_file_and_are_counted(tmp_path):
    base = [question(number) for number in range(100)]
    varied = [f"Please, {text}?" for text in base]
    report = prepare(tmp_path, base + varied)
    near = report["near_dialogues"]
    found = places(tmp_path)
    assert len(found) == 200
    assert all(found[a] == found[b] for a, b in zip(base, varied, strict=True))
    assert (near["threshold"], near["num_groups"], near["num_dialogues"]) == (0.7, 100, 200)
    assert near["num_kept_together"] > 40
    alone = prepare(tmp_path, base + varied, near_dialogues=None)["near_dialogues"]
    found = places(tmp_path)
    assert alone["num_groups"] == 0
    split = sum(found[a] != found[b] for a, b in zip(base, varied, strict=True))
    assert split == near["num_kept_together"]


def test_the_order_of_rows_changes_no_place(tmp_path):
    prompts = [text for n in range(80) for text in (question(n), f"{question(n)} today")]
    prepare(tmp_path, prompts)
    before = places(tmp_path)
    prepare(tmp_path, random.Random(0).sample(prompts, len(prompts)))
    assert places(tmp_path) == before


def test_what_is_near_the_held_out_file_trains_nowhere(tmp_path):
    held = [question(number) for number in range(20)]
    near = [f"{text}, please" for text in held]
    far = [question(number) for number in range(100, 220)]
    write(tmp_path / "heldout.jsonl", [{"prompt": text} for text in held])
    write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in near + far])
    demonstrations = [{"prompt": text, "response": "Yes."} for text in near + far]
    write(tmp_path / "demonstrations.jsonl", demonstrations)
    paths = {"path": tmp_path / "prompts.jsonl", "heldout_path": tmp_path / "heldout.jsonl"}
    report = prepare(
        tmp_path,
        held[:5] + near + far,
        prompts={name: str(path) for name, path in paths.items()},
        demonstrations={"path": str(tmp_path / "demonstrations.jsonl")},
    )
    found = places(tmp_path)
    assert all(found[text].endswith("heldout") for text in near)
    assert report["near_dialogues"]["num_beside_heldout_file"] == 20
    assert report["inputs"]["preferences"]["set_aside"] == {"prompt_is_heldout": 5}
    assert report["inputs"]["prompts"]["set_aside"]["prompt_near_heldout"] == 20
    folder = tmp_path / "prepared"
    sampled = iterate_records(folder / "prompts_train.jsonl", Prompt)
    shown = iterate_records(folder / "demonstrations_train.jsonl", Demonstration)
    trained_on = {item.prompt[0].content for items in (sampled, shown) for item in items}
    assert trained_on.isdisjoint(near + held)
    for name, rows in report["inputs"].items():
        assert rows["rows"] == rows["kept"] + sum(rows["set_aside"].values()), name
