"""Which checkpoint of a policy is offered, and the prompts that the judge chooses on."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_core.adapters.registry.lineage import trace_lineage
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import DpoConfig, PpoConfig
from rlhf_core.dataprep.keys import dialogue_key
from rlhf_core.errors import ConfigError, RegistryError
from rlhf_core.models.files import weights_sha256
from rlhf_core.schema import DatasetRef, Message, PreferencePair, Prompt, StageResult
from rlhf_core.stages import policy
from rlhf_core.stages.evaluation import figures, report
from rlhf_core.stages.models.renderers import base_renderer
from rlhf_core.stages.training import selection
from rlhf_core.stages.training.job import Trained, TrainingJob
from rlhf_core.stages.training.run import kept_weights
from rlhf_core.stages.training.selection import SelectionAnswer, preferred
from rlhf_core.stages.training.selection_prompts import set_apart
from rlhf_core.storage.records import read_records, write_records
from rlhf_core.trainers.checkpoint import spread_evenly
from tests.stages.conftest import question

NUM_PROMPTS, JUDGED, LEARNED = 60, range(20), range(10, 40)
PPO = {
    "num_iterations": 4, "rollout_batch_size": 4, "num_minibatches": 1, "num_epochs": 1,
    "critic_warmup_iterations": 1, "max_new_tokens": 6, "checkpoint_every": 2,
    "optimizer": {"learning_rate": 1e-3},
}  # fmt: skip
DPO = {
    "algorithm": "dpo", "num_epochs": 1, "batch_size": 8, "checkpoint_every": 1,
    "optimizer": {"learning_rate": 1e-3},
}  # fmt: skip


def rewritten(splits, **parts):
    """The same dataset with other rows in some parts."""
    refs = {}
    for name, rows in parts.items():
        ref: DatasetRef = getattr(splits, name)
        refs[name] = ref.model_copy(update={"num_rows": write_records(ref.path, rows)})
    return splits.model_copy(update=refs)


@pytest.fixture
def splits(small_splits):
    """Sixty prompts; the judge learned from pairs of the first, a policy from later ones."""
    pair = read_records(small_splits.judge_train, PreferencePair)[0]

    def pairs(numbers):
        return [pair.model_copy(update={"prompt": question(i)}) for i in numbers]

    return rewritten(
        small_splits,
        judge_train=pairs(JUDGED),
        reward_train=pairs(LEARNED),
        prompts_train=[Prompt(prompt_id=f"p{i}", prompt=question(i)) for i in range(NUM_PROMPTS)],
    )


@pytest.fixture
def config_of(stage_config):
    """Settings with a policy as given; nothing is held together but equal dialogues."""

    def make(settings, near=None, **chosen):
        kind = DpoConfig if settings.get("algorithm") == "dpo" else PpoConfig
        settings = kind.model_validate(settings | {"selection": chosen})
        config = stage_config()
        data = config.data.model_copy(update={"near_dialogues": near})
        return config.model_copy(update={"policy": settings, "data": data})

    return make


def apart(config, splits):
    return set_apart(config, splits, base_renderer(config.model))


@pytest.mark.parametrize("settings", [PPO, DPO])
def test_selection_prompts_are_a_tenth_at_most_and_unknown_to_the_judge(
    settings, config_of, splits
):
    config = config_of(settings)
    part = apart(config, splits)
    assert len(part.prompts) == NUM_PROMPTS // 10
    keys = {dialogue_key(prompt.prompt) for prompt in part.prompts}
    assert keys == part.dialogues
    assert keys.isdisjoint(dialogue_key(question(i)) for i in JUDGED)
    assert apart(config, splits) == part
    assert len(apart(config_of(settings, num_prompts=3), splits).prompts) == 3
    assert apart(config_of(settings, num_prompts=0), splits).dialogues == frozenset()


def test_rows_that_come_later_move_hardly_any_prompt(config_of, splits):
    config = config_of(PPO, num_prompts=4)
    before = apart(config, splits)
    rows = read_records(splits.prompts_train, Prompt)
    rows.insert(0, Prompt(prompt_id="new", prompt=question(500)))
    splits = rewritten(splits, prompts_train=rows)
    after = apart(config, splits)
    assert len(before.dialogues - after.dialogues) <= 1
    other = apart(config.model_copy(update={"seed": 1}), splits)
    assert other.dialogues != after.dialogues


def test_a_dialogue_goes_whole_and_near_ones_go_with_it(config_of, splits):
    words = "Please tell me on which days of the week and at what time the old {} is open for us {}"
    prompts = []
    for number in range(40):
        start = words.format(f"place-{number}", number) + f" and who runs it, number {number}"
        near = words.format(f"place-{number}", number) + f" and who runs it, number {number}?"
        for text in (start, near + " Thanks"):
            turn = Message(role="user", content=" ".join([f"{number}{w}" for w in text.split()]))
            later = (
                Message(role="assistant", content="At nine."),
                Message(role="user", content="Why?"),
            )
            for prompt in ((turn,), (turn, *later)):
                prompts.append(Prompt(prompt_id=f"p{len(prompts)}", prompt=prompt))
    splits = rewritten(splits, prompts_train=prompts)
    part = apart(config_of(PPO, near=0.6, num_prompts=3), splits)
    assert len(part.prompts) == 3
    assert len(part.dialogues) == 6
    assert len(apart(config_of(PPO, num_prompts=3), splits).dialogues) == 3


def test_dialogues_that_open_nearly_alike_are_a_tenth_at_most_as_well(config_of, splits):
    words = "please tell me on which days of the week and at what time the place is open for us"
    openings = [
        " ".join(f"{topic}{word}" for word in (*words.split(), f"variant{variant}"))
        for topic in range(55)
        for variant in range(10 if topic < 5 else 1)
    ]
    prompts = [
        Prompt(prompt_id=f"p{place}", prompt=(Message(role="user", content=text),))
        for place, text in enumerate(openings)
    ]
    splits = rewritten(splits, prompts_train=prompts)
    for seed in range(5):
        config = config_of(PPO, near=0.6).model_copy(update={"seed": seed})
        part = apart(config, splits)
        assert 1 <= len(part.prompts) <= len(part.dialogues) <= len(openings) // 10


def test_the_earliest_checkpoint_within_the_noise_of_the_best_is_preferred():
    won = {10: np.array([0.0] * 60 + [1.0] * 40), 20: np.array([0.0] * 30 + [1.0] * 70)}
    assert preferred(won | {30: won[20].copy()}) == 20
    almost = won[20].copy()
    almost[40] = 0.0
    assert preferred({15: almost, 20: won[20]}) == 15
    assert preferred({20: won[20], 30: won[10]}) == 20
    lost = won[20].copy()
    lost[-4:] = 0.0
    assert preferred({15: lost, 20: won[20]}) == 20
    lost[:3] = 1.0
    assert preferred({15: lost, 20: won[20]}) == 15
    assert preferred({7: np.array([1.0])}) == 7


@pytest.mark.parametrize(("steps", "count", "kept"), [
    ([1, 2, 3], 5, [1, 2, 3]), (range(10, 110, 10), 5, [20, 40, 60, 80, 100]), ([4, 8, 9], 1, [9]),
])  # fmt: skip
def test_checkpoints_kept_are_spread_evenly_and_end_with_the_last(steps, count, kept):
    assert spread_evenly(list(steps), count) == kept


class Prefers:
    """A judge that likes the checkpoint whose turn is given, and SFT more than all others."""

    judges = ()

    def __init__(self, turn):
        self.turn, self.asked = turn, 0

    def __call__(self, *_):
        return self

    def decide(self, prompts, texts):
        self.asked += 1
        won = np.full(len(prompts), float(self.asked == self.turn))
        return [won, 1.0 - won], SimpleNamespace(over_sft=won, unjudged=[""] * len(won))


class ToldNothing(Prefers):
    """A judge that never comes to a verdict, on some prompts for want of an answer."""

    def decide(self, prompts, texts):
        won = np.full(len(prompts), 0.5)
        reasons = ["refused"] * self.turn + [""] * (len(prompts) - self.turn)
        return [won, won], SimpleNamespace(over_sft=won, unjudged=reasons)


@pytest.fixture
def models(registered):
    return registered(("sft", "reward", "judge"), run_id="earlier")


def train(config, splits, models, context, **changes):
    given = {"judge": models["judge"], **changes}
    return policy.train_policy(config, splits, models["sft"], models["reward"], context, **given)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (PPO, [2, 4]),
        pytest.param(PPO | {"compute": {"lora": {"rank": 2}}}, [2, 4], marks=pytest.mark.nightly),
        (DPO | {"compute": {"lora": {"rank": 2}}, "loss": "kto"}, [1, 2, 3, 4]),
    ],
)
def test_the_checkpoint_that_the_judge_prefers_is_registered(
    settings, steps, config_of, splits, models, stage_context, monkeypatch
):
    config, directory = config_of(settings), stage_context.stage_directory("policy")
    written = []
    learn = policy.train
    monkeypatch.setattr(selection, "Panel", Prefers(turn=1))
    monkeypatch.setattr(policy, "train", lambda *given: written.append(learn(*given)) or written[0])
    result = train(config, splits, models, stage_context)
    choice = result.report.choice
    assert [score.step for score in choice.scores] == steps
    assert choice.step == steps[0]
    assert [score.win_rate.value for score in choice.scores] == [1.0] + [0.0] * (len(steps) - 1)
    assert result.model.sha256 == weights_sha256(directory / "model")
    assert trace_lineage(result.model.uri).checkpoint == choice.summary
    rows = read_records(choice.answers, SelectionAnswer)
    assert len(rows) == choice.num_prompts
    assert {step for row in rows for step in row.answers} == set(steps)
    history = mlflow_client().get_metric_history(result.model.run_id, "policy/selection_win_rate")
    assert {point.step: point.value for point in history} == dict.fromkeys(steps, 0.0) | {
        steps[0]: 1.0
    }
    names = {model.name for model in mlflow_client().search_registered_models()}
    assert "rlhf-policy" in names, "no look at the held-out prompts is spent"
    assert "rlhf-looks" not in names
    notes = []
    (directory / "result.json").write_text(result.model_dump_json())
    (picture,) = figures.choice_figures(
        report._result(stage_context.directory, "policy", StageResult), notes
    )
    assert picture.startswith("data:image/svg+xml")
    assert not notes
    missing = report._result(stage_context.directory / "none", "policy", StageResult)
    assert figures.choice_figures(missing, notes) == []
    # What is made of the weights kept at the end is what the training itself wrote, to the bit.
    assert written[0].sha256 != result.model.sha256
    job = a_job(config, splits, models, directory)
    again = selection._rewrite(job, steps[-1], selection.model_renderer(models["sft"].path))
    assert again == written[0]
    # Where they are lost, the best of those left is offered, and not what was trained last.
    shutil.rmtree(directory / "checkpoints/kept" / f"step-{steps[-1]:09d}")
    monkeypatch.setattr(selection, "Panel", Prefers(turn=len(steps) - 1))
    quiet = SimpleNamespace(log_artifact=lambda path: None, log_metrics=lambda of, step: None)
    offered, choice = selection.choose_checkpoint(job, written[0], models["judge"], quiet)
    assert choice.step == steps[-2]
    assert offered.sha256 == weights_sha256(directory / "model") != written[0].sha256


@pytest.mark.parametrize(("judge", "says"), [
    (ToldNothing(0), "the judge prefers no answer of any checkpoint"),
    (ToldNothing(1), "of the answers were not judged"),
    (Prefers(turn=2), ""),
])  # fmt: skip
def test_a_judge_that_says_nothing_chooses_nothing(judge, says):
    said = {step: judge.decide([None] * 5, [])[1] for step in (2, 4)}
    scored = {
        step: selection._Scored(None, one.over_sft, np.mean(list(map(bool, one.unjudged))), [], 1)
        for step, one in said.items()
    }
    assert says in (doubt := selection._doubt(scored))
    assert bool(doubt) == bool(says)


def test_the_last_checkpoint_is_offered_where_the_judge_says_nothing(
    config_of, splits, models, stage_context, monkeypatch, caplog
):
    monkeypatch.setattr(selection, "Panel", ToldNothing(0))
    choice = train(config_of(PPO), splits, models, stage_context).report.choice
    assert choice.step == 4
    assert "chose none on" in choice.summary
    assert "the last checkpoint is offered" in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [PPO, DPO])
def test_weights_kept_in_parts_by_several_processes_are_put_together(
    settings, config_of, splits, models, stage_context, monkeypatch
):
    several = settings | {"distributed": {"processes": 2, "shard": "layers"}}
    config, directory = config_of(several), stage_context.stage_directory("policy")
    written = []
    learn = policy.train
    monkeypatch.setattr(selection, "Panel", Prefers(turn=1))
    monkeypatch.setattr(policy, "train", lambda *given: written.append(learn(*given)) or written[0])
    result = train(config, splits, models, stage_context)
    steps = [score.step for score in result.report.choice.scores]
    assert result.report.choice.step == steps[0] < steps[-1]
    assert result.model.sha256 == weights_sha256(directory / "model") != written[0].sha256
    parts = directory / "checkpoints/kept" / f"step-{steps[0]:09d}"
    assert len(list(parts.glob("*.safetensors"))) > 1
    job = a_job(config, splits, models, directory)
    again = selection._rewrite(job, steps[-1], selection.model_renderer(models["sft"].path))
    assert again == written[0]


def a_job(config, splits, models, directory):
    return TrainingJob(
        role="policy", config=config, splits=splits, directory=directory,
        checkpoints=directory / "checkpoints", sft=models["sft"],
    )  # fmt: skip


@pytest.mark.nightly
def test_a_stage_that_is_killed_while_choosing_makes_the_same_choice(
    config_of, splits, models, stage_context, monkeypatch
):
    config = config_of(PPO)
    whole = train(config, splits, models, stage_context)
    again = stage_context.model_copy(update={"directory": stage_context.directory / "again"})

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(selection, "preferred", die)
        with pytest.raises(Killed):
            train(config, splits, models, again)
    # In the middle of the training: what was kept before is found again, what follows kept anew.
    checkpoints = again.stage_directory("policy") / "checkpoints"
    for place in (checkpoints, checkpoints / "kept"):
        shutil.rmtree(place / "step-000000004")
    resumed = train(config, splits, models, again)
    assert resumed.model.sha256 == whole.model.sha256
    assert resumed.report.choice.scores == whole.report.choice.scores
    assert resumed.report.choice.step == whole.report.choice.step
    both = [each.stage_directory("policy") / selection.ANSWERS for each in (stage_context, again)]
    assert both[0].read_bytes() == both[1].read_bytes()


@pytest.mark.parametrize("settings", [PPO, DPO])
def test_nothing_of_the_selection_prompts_trains_the_policy(
    settings, config_of, splits, models, stage_context, monkeypatch
):
    seen = []

    class Begun(Exception):
        pass

    def begin(*given, **_):
        seen.append(given)
        raise Begun

    name = "fit_dpo" if settings is DPO else "fit_ppo"
    monkeypatch.setattr(policy, name, begin)
    config = config_of(settings)
    with pytest.raises(Begun):
        train(config, splits, models, stage_context)
    renderer = base_renderer(config.model)
    part = apart(config, splits)
    asked = {tuple(renderer.prompt_ids(prompt.prompt)) for prompt in part.prompts}
    read = seen[0][2] if settings is DPO else seen[0][1].prompts
    assert asked.isdisjoint(tuple(row.prompt_ids) for row in read)
    whole = LEARNED if settings is DPO else range(NUM_PROMPTS)
    gone = {key for key in part.dialogues if key in {dialogue_key(question(i)) for i in whole}}
    assert len(read) == len(whole) - len(gone)
    assert settings is DPO or gone


def test_without_selection_nothing_is_kept_and_nobody_asked(config_of, splits, models, tmp_path):
    config = config_of(PPO, num_prompts=0)
    policy._require_chooser(config, None, models["reward"], splits)
    assert kept_weights(a_job(config, splits, models, tmp_path), None) is None


def test_a_choice_without_a_judge_or_by_the_reward_model_is_refused(
    config_of, splits, models, stage_context
):
    with pytest.raises(ConfigError, match=r"none was given.*policy\.selection\.num_prompts to 0"):
        train(config_of(PPO), splits, models, stage_context, judge=None)
    with pytest.raises(RegistryError, match="the reward model the policy was optimised against"):
        train(config_of(PPO), splits, models, stage_context, judge=models["reward"])


def test_too_few_dialogues_offer_the_last_checkpoint_and_say_so(
    config_of, small_splits, models, tmp_path, caplog
):
    job, last = (
        a_job(config_of(PPO), small_splits, models, tmp_path),
        Trained(sha256="", num_steps=4),
    )
    assert selection.choose_checkpoint(job, last, models["judge"], None) == (last, None)
    assert "no prompt could be set apart" in caplog.text
