"""Pairs of answers from the shipped base model: the same again, and none of a held-out prompt."""

import numpy as np
import pytest

from rlhf_core.errors import ConfigError, DataError, ModelError
from rlhf_core.feedback.collection import ORIGINS, PAIRS, Origin
from rlhf_core.rollout.sample import SampledResponse
from rlhf_core.schema import Comparison, Demonstration, Message, ModelRef, PreferencePair, Prompt
from rlhf_core.stages.collect import collect_pairs
from rlhf_core.stages.labels import answers as collect_answers
from rlhf_core.stages.labels import disagreement
from rlhf_core.storage.records import read_records, sha256_of, write_records

SIMULATED = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}

HELDOUT = {
    "prompts_heldout": Prompt,
    "demonstrations_heldout": Demonstration,
    "reward_heldout": PreferencePair,
    "judge_heldout": PreferencePair,
}


@pytest.fixture
def feedback_config(stage_config, tmp_path):
    def make(production=None, **changes):
        settings = {"output": str(tmp_path / "collected"), "max_new_tokens": 8, **changes}
        raw = stage_config().model_dump(mode="json")
        raw["feedback"] = {"labeler": SIMULATED, **settings}
        raw["data"]["prompts"]["production_path"] = production and str(production)
        return type(stage_config()).model_validate(raw)

    return make


@pytest.fixture
def models(saved_models):
    return {
        role: ModelRef(
            name=role, version="1", uri=f"models:/{role}/1", path=folder, sha256=sha256,
            kind="causal" if role in ("sft", "policy") else "scalar", run_id="r",
        )
        for role, (folder, sha256) in saved_models.items()
    }  # fmt: skip


@pytest.fixture
def splits(small_splits):
    """As made by preparation: what is held out is not trained on."""
    rows = read_records(small_splits.prompts_train, Prompt)
    kept = {
        "prompts_train": rows[:8],
        "prompts_heldout": rows[8:],
        "demonstrations_heldout": [],
        "reward_heldout": [],
        "judge_heldout": [],
    }
    changed = {}
    for name, records in kept.items():
        ref = getattr(small_splits, name)
        count = write_records(ref.path, records)
        changed[name] = ref.model_copy(update={"num_rows": count, "sha256": sha256_of(ref.path)})
    return small_splits.model_copy(update=changed)


def files_of(found):
    return {path.name: path.read_bytes() for path in found.folder.iterdir() if path.is_file()}


def asked(found):
    return [pair.prompt[-1].content for pair in read_records(found.folder / PAIRS, Comparison)]


def test_the_same_seed_makes_the_same_bytes_and_another_one_another_collection(
    feedback_config, splits, models, tmp_path
):
    first = collect_pairs(feedback_config(), splits, [models["policy"]])
    again = feedback_config(output=str(tmp_path / "elsewhere"))
    second = collect_pairs(again, splits, [models["policy"]])
    assert files_of(first) == files_of(second)
    assert first.collection.counts.pairs == 8
    other = collect_pairs(feedback_config(seed=1), splits, [models["policy"]])
    assert other.folder.name != first.folder.name
    assert {p.response_a for p in read_records(other.folder / PAIRS, Comparison)}.isdisjoint(
        {p.response_a for p in read_records(first.folder / PAIRS, Comparison)}
    )


def test_a_collection_that_is_there_is_used_and_one_that_was_changed_refused(
    feedback_config, splits, models, monkeypatch
):
    first = collect_pairs(feedback_config(), splits, [models["policy"]])
    monkeypatch.setattr(collect_answers, "sample_responses", lambda *_, **__: 1 / 0)
    assert collect_pairs(feedback_config(), splits, [models["policy"]]) == first
    with (first.folder / PAIRS).open("a") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match=r"pairs.jsonl: not what manifest.json says"):
        collect_pairs(feedback_config(), splits, [models["policy"]])


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_a_collection_that_was_stopped_goes_on_and_comes_out_the_same(
    feedback_config, splits, models, monkeypatch, tmp_path, stopped_at
):
    sample, asked = collect_answers.sample_responses, []

    def stopping(*arguments, **settings):
        asked.append(settings["seed"])
        if len(asked) == stopped_at:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    both = [models["policy"], models["sft"]]
    whole = files_of(collect_pairs(feedback_config(max_resamples=0), splits, both))
    monkeypatch.setattr(collect_answers, "_AT_ONCE", 3)  # 8 prompts: three parts of each model
    monkeypatch.setattr(collect_answers, "sample_responses", stopping)
    config = feedback_config(output=str(tmp_path / "elsewhere"), max_resamples=0)
    with pytest.raises(KeyboardInterrupt):
        collect_pairs(config, splits, both)
    (journal,) = config.feedback.output.glob(".*.answers.jsonl")
    with journal.open("a") as stream:
        stream.write('{"answers":[{"text":"cut by the ki')
    assert not [path for path in config.feedback.output.iterdir() if path.is_dir()]
    assert files_of(collect_pairs(config, splits, both)) == whole
    assert len(asked) == 6 + 1  # the one that was stopped, again
    assert not journal.exists()


def test_prompts_are_the_collections_own_then_the_users_then_those_of_training(
    feedback_config, splits, models, tmp_path
):
    def prompts(name):
        path = tmp_path / f"{name}.jsonl"
        turn = (Message(role="user", content=f"A {name} question?"),)
        write_records(path, [Prompt(prompt_id=name, prompt=turn)])
        return path

    policy = [models["policy"]]
    assert len(asked(collect_pairs(feedback_config(), splits, policy))) == 8
    production = prompts("production")
    found = collect_pairs(feedback_config(production), splits, policy)
    assert asked(found) == ["A production question?"]
    own = feedback_config(production, prompts=str(prompts("own")))
    assert asked(collect_pairs(own, splits, policy)) == ["A own question?"]
    gone = feedback_config(prompts=str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: no prompts in it"):
        collect_pairs(feedback_config(prompts=str(tmp_path / "empty.jsonl")), splits, policy)
    with pytest.raises(DataError, match=r"gone.jsonl: no such file; feedback.prompts must name"):
        collect_pairs(gone, splits, policy)


def test_prompts_of_held_out_dialogues_are_never_asked(feedback_config, splits, models, tmp_path):
    heldout = read_records(splits.prompts_heldout, Prompt)
    later = (*heldout[0].prompt, Message(role="assistant", content="At nine."),
             Message(role="user", content="And when does it close?"))  # fmt: skip
    shouted = (Message(role="user", content=heldout[1].prompt[0].content.upper()),)
    fresh = (Message(role="user", content="Who sells tickets?"),)
    path = tmp_path / "production.jsonl"
    rows = [*(h.prompt for h in heldout), later, shouted, fresh]
    write_records(path, [Prompt(prompt_id=str(i), prompt=row) for i, row in enumerate(rows)])
    found = collect_pairs(feedback_config(path), splits, [models["policy"]])
    assert asked(found) == ["Who sells tickets?"]
    counts = found.collection.counts
    assert (counts.prompts, counts.heldout, counts.asked) == (len(rows), len(rows) - 1, 1)
    write_records(path, heldout)
    with pytest.raises(DataError, match="all 4 prompts are of held-out dialogues"):
        collect_pairs(feedback_config(path), splits, [models["policy"]])


@pytest.mark.parametrize("name", HELDOUT)
def test_a_dialogue_is_held_out_in_whichever_file(
    feedback_config, small_splits, models, tmp_path, name
):
    ref = getattr(small_splits, name)
    path = tmp_path / "production.jsonl"
    prompts = {row.prompt for row in read_records(ref, HELDOUT[name])}
    write_records(path, [Prompt(prompt_id=str(i), prompt=one) for i, one in enumerate(prompts)])
    (tmp_path / "none.jsonl").touch()
    none = ref.model_copy(update={"path": tmp_path / "none.jsonl", "num_rows": 0})
    alone = small_splits.model_copy(update={other: none for other in HELDOUT if other != name})
    with pytest.raises(DataError, match=rf"all {len(prompts)} prompts are of held-out dialogues"):
        collect_pairs(feedback_config(path), alone, [models["policy"]])


def test_at_most_so_many_prompts_are_drawn_and_those_too_long_left_out(
    feedback_config, splits, models, tmp_path
):
    few = collect_pairs(feedback_config(num_prompts=3), splits, [models["policy"]])
    assert few.collection.counts.asked == 3
    path = tmp_path / "long.jsonl"
    texts = ["Who sells tickets?", "Who sells tickets? " * 60]
    rows = [(Message(role="user", content=text),) for text in texts]
    write_records(path, [Prompt(prompt_id=str(i), prompt=row) for i, row in enumerate(rows)])
    found = collect_pairs(feedback_config(path), splits, [models["sft"]])
    assert asked(found) == ["Who sells tickets?"]
    assert found.collection.counts.unfitting == 1


def test_two_models_answer_once_each_on_sides_that_are_drawn(feedback_config, splits, models):
    both = [models["policy"], models["sft"]]
    found = collect_pairs(feedback_config(temperature=0.7), splits, both)
    origins = read_records(found.folder / ORIGINS, Origin)
    sides = {(row.model_a, row.model_b) for row in origins}
    assert sides == {("models:/policy/1", "models:/sft/1"), ("models:/sft/1", "models:/policy/1")}
    assert [model.uri for model in found.collection.models] == [model.uri for model in both]
    pairs = read_records(found.folder / PAIRS, Comparison)
    assert [row.comparison_id for row in origins] == [pair.comparison_id for pair in pairs]
    # The sides of the model that stays say whose answers the others are.
    alone = collect_pairs(feedback_config(temperature=0.7), splits, [models["policy"]])
    texts = {t for p in read_records(alone.folder / PAIRS, Comparison)
             for t in (p.response_a, p.response_b)}  # fmt: skip
    for pair, origin in zip(pairs, origins, strict=True):
        mine = pair.response_a if "policy" in origin.model_a else pair.response_b
        assert mine in texts


def answers_by(monkeypatch, say):
    """Let ``say(prompt, seed)`` answer in place of a model."""

    def sample(model, tokenizer, prompts, *, seed, **_):
        return [
            SampledResponse(say(prompt[-1].content, seed), (1,), (0.0,), True) for prompt in prompts
        ]

    monkeypatch.setattr(collect_answers, "sample_responses", sample)


def test_alike_and_empty_answers_are_drawn_again_then_left_out_and_counted(
    feedback_config, splits, models, monkeypatch
):
    seeds = []

    def say(question, seed):
        if seed not in seeds:
            seeds.append(seed)
        attempt = seeds.index(seed) // 2
        if "library" in question:
            return " The  same" if seeds.index(seed) % 2 else "the same"
        if "museum" in question:
            return "" if seeds.index(seed) % 2 else "words"
        if "pool" in question and attempt < 2:
            return "alike at first"
        return f"answer {seed}"

    answers_by(monkeypatch, say)
    found = collect_pairs(feedback_config(max_resamples=2), splits, [models["policy"]])
    counts = found.collection.counts
    assert (counts.asked, counts.resampled, counts.pairs) == (8, 2, 7)
    assert len(seeds) == 6  # three attempts of two, each from streams of its own


def test_without_any_pair_the_message_says_what_to_change(
    feedback_config, splits, models, monkeypatch
):
    answers_by(monkeypatch, lambda question, seed: "always this")
    with pytest.raises(DataError, match=r"none of 8 .* raise feedback.temperature"):
        collect_pairs(feedback_config(), splits, [models["policy"]])


def test_a_reward_model_gives_no_answers(feedback_config, splits, models):
    with pytest.raises(ModelError, match="models:/judge/1: a scalar model gives no answers"):
        collect_pairs(feedback_config(), splits, [models["judge"]])


def test_without_the_section_one_line_says_where_it_is_described(stage_config, splits, models):
    with pytest.raises(ConfigError, match=r"feedback: no such section .* docs/feedback.md"):
        collect_pairs(stage_config(), splits, [models["policy"]])


def test_the_pairs_kept_are_those_that_the_reward_models_disagree_on(
    feedback_config, splits, models, monkeypatch
):
    scores = {"reward": {}, "judge": {}}
    monkeypatch.setattr(
        disagreement,
        "open_scorer",
        lambda model, device: (
            lambda prompts, texts: np.array(
                [scores[model.name].setdefault(text, float(len(text) % 5)) for text in texts]
            )
        ),
    )
    every = collect_pairs(feedback_config(), splits, [models["policy"]])
    pairs = read_records(every.folder / PAIRS, Comparison)
    # They differ on two pairs alone: of one mind about which is better, and not.
    sure, divided = pairs[2], pairs[5]
    scores["reward"] |= {sure.response_a: 9.0, sure.response_b: 8.0}
    scores["judge"] |= {sure.response_a: 9.0, sure.response_b: 6.0}
    scores["reward"] |= {divided.response_a: 9.0, divided.response_b: 6.0}
    scores["judge"] |= {divided.response_a: 6.0, divided.response_b: 9.0}
    choosers = [models["reward"], models["judge"]]
    choice = {"drawn_per_pair": 8}
    settings = feedback_config(num_prompts=1, choice=choice)
    found = collect_pairs(settings, splits, [models["policy"]], choosers)
    (kept,) = read_records(found.folder / PAIRS, Comparison)
    assert kept.prompt == divided.prompt
    assert {kept.response_a, kept.response_b} == {divided.response_a, divided.response_b}
    counts, chosen = found.collection.counts, found.collection.choice
    assert (counts.pairs, counts.agreed, chosen.drawn) == (1, len(pairs) - 1, len(pairs))
    (origin,) = read_records(found.folder / ORIGINS, Origin)
    sign = 1 if kept.response_a == divided.response_a else -1
    expected = 1 / (1 + np.exp([-3.0 * sign, 3.0 * sign]))
    assert list(origin.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    assert chosen.kept_disagreement == pytest.approx(np.std(expected))
    again = feedback_config(num_prompts=2, choice={"drawn_per_pair": 4})
    second = collect_pairs(again, splits, [models["policy"]], choosers)
    assert sure.prompt in [pair.prompt for pair in read_records(second.folder / PAIRS, Comparison)]


def test_real_reward_models_choose_and_the_same_ones_make_the_same_collection(
    feedback_config, splits, models, tmp_path
):
    settings = {"num_prompts": 3, "choice": {"drawn_per_pair": 2}}
    choosers = [models["reward"], models["judge"].model_copy(update={"sha256": "e" * 64})]
    first = collect_pairs(feedback_config(**settings), splits, [models["policy"]], choosers)
    elsewhere = feedback_config(**settings, output=str(tmp_path / "elsewhere"))
    assert files_of(collect_pairs(elsewhere, splits, [models["policy"]], choosers)) == files_of(
        first
    )
    rows = read_records(first.folder / ORIGINS, Origin)
    assert len(rows) == 3
    assert {name for row in rows for name in row.probabilities} == {m.uri for m in choosers}


@pytest.mark.parametrize(
    ("roles", "error", "says"),
    [
        (["reward"], ConfigError, "two different reward models, found models:/reward/1"),
        ([], ConfigError, "found nobody"),
        (["reward", "sft"], ModelError, "models:/sft/1 gives text, and no scores"),
    ],
)
def test_pairs_are_chosen_by_two_reward_models_or_not_at_all(
    feedback_config, splits, models, roles, error, says
):
    choosers = [models[role] for role in roles]
    with pytest.raises(error, match=says):
        collect_pairs(feedback_config(choice={}), splits, [models["policy"]], choosers)


def test_fresh_prompts_are_of_dialogues_that_no_pair_is_about(
    feedback_config, splits, models, small_splits, tmp_path
):
    (pair, *_) = read_records(small_splits.reward_train, PreferencePair)
    trained = read_records(splits.prompts_train, Prompt)
    compared = [pair.model_copy(update={"prompt": prompt.prompt}) for prompt in trained[:6]]
    ref = splits.judge_train
    write_records(ref.path, compared)
    changed = ref.model_copy(update={"num_rows": 6, "sha256": sha256_of(ref.path)})
    (tmp_path / "none.jsonl").touch()
    none = splits.reward_train.model_copy(update={"path": tmp_path / "none.jsonl", "num_rows": 0})
    splits = splits.model_copy(update={"judge_train": changed, "reward_train": none})
    found = collect_pairs(feedback_config(fresh=True), splits, [models["policy"]])
    counts = found.collection.counts
    assert (counts.compared, counts.asked) == (6, 2)
    assert len(asked(collect_pairs(feedback_config(), splits, [models["policy"]]))) == 8
    write_records(ref.path, [one.model_copy(update={"prompt": p.prompt})
                             for one in compared[:1] for p in trained])  # fmt: skip
    ref = ref.model_copy(update={"num_rows": 8, "sha256": sha256_of(ref.path)})
    with pytest.raises(DataError, match="each of 8 prompts is of a dialogue that has a pair"):
        collect_pairs(
            feedback_config(fresh=True),
            splits.model_copy(update={"judge_train": ref}),
            [models["policy"]],
        )
