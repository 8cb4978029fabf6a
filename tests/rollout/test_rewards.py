"""Terms of the reward: functions in a process of their own, ensembles, weights and clips."""

import os
import signal
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import psutil
import pytest
import torch

from rlhf_core.config import FunctionTermConfig, ModelTermConfig, PipelineConfig, PpoConfig
from rlhf_core.config.load import RESULT_NEUTRAL, config_digest
from rlhf_core.errors import ConfigError, RewardError
from rlhf_core.functional.rewards import combine_ensemble
from rlhf_core.functional.running_moments import RunningMoments
from rlhf_core.rollout.experience import Rollout, ScoredRollout
from rlhf_core.rollout.reward_function import RewardFunction
from rlhf_core.rollout.rewards import RewardTerms, Term, ensemble, own_scores, sum_terms
from rlhf_core.schema import Message, Prompt
from rlhf_core.trainers.state import run_fingerprint
from tests.flows.served import PATIENCE_SECONDS, until
from tests.trainers.toys import ids

FUNCTIONS = """
import os, sys, time

def score(prompt, response, reference):
    print("said while scoring")
    if response in ("loop", "one call"):
        open(reference, "w").close()
        while response == "loop":
            pass
        sum(range(10**18))
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(3)
    if response == "raise":
        raise KeyError("no such fact")
    if response == "word":
        return "good"
    return float(response == reference) + len(prompt)

def turns(prompt, response, reference, conversation):
    return len(conversation) + (conversation[-1]["content"] == prompt)

def alone(response):
    return 1.0
"""


def asked(text="four", reference=None, earlier=()):
    turns = (*earlier, Message(role="user", content=text))
    return Prompt(prompt_id=text, prompt=turns, reference=reference)


@pytest.fixture(scope="module")
def function(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(FUNCTIONS)
    (path.parent / "broken.py").write_text("def score(:\n")
    names = (f"{path}:score", f"{path}:turns", f"{path}:alone", f"{path}:gone")
    others = (f"{path.parent}/broken.py:score", f"{path.parent}/none.py:score")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_ALLOWED_FUNCTIONS", ",".join((*names, *others)))
        made = []

        def start(name="score", time_limit=30, file=path.name):
            spec = f"{path.parent}/{file}:{name}"
            made.append(RewardFunction("policy.rewards.0", spec, time_limit=time_limit))
            return made[-1]

        yield start
        for one in made:
            one.close()


def test_a_function_scores_by_the_reference_and_may_print(function):
    score = function()
    prompt = asked(reference="nine")
    assert [score(prompt, text) for text in ("nine", "ten")] == [5.0, 4.0]
    assert score(asked(), "nine\n\u2028") == 4.0
    for text, said in (("raise", "KeyError.*no such fact"), ("word", "'good', expected a finite")):
        with pytest.raises(RewardError, match=f"rewards.0.*{said}.*'{text}'"):
            score(asked(), text)
    assert score(prompt, "nine") == 5.0
    with pytest.raises(RewardError, match="died"):
        score(asked(), "die")


def test_a_function_that_wants_them_is_given_all_turns(function):
    earlier = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    assert function("turns")(asked(earlier=earlier), "nine") == 4.0


def test_a_function_that_hangs_is_ended(function):
    score = function(time_limit=0.2)
    with pytest.raises(RewardError, match=r"longer than 0.2 s \(time_limit\), at .*'hang'"):
        score(asked(), "hang")
    score.close()
    with pytest.raises(ProcessLookupError):
        os.kill(score._process.pid, 0)


@pytest.mark.parametrize("text", ["loop", "one call"])
def test_a_function_that_never_ends_ends_with_the_process_that_asked(
    function, text, tmp_path, forked
):
    """A rank that the system killed could not end it: it computed on, for ever."""
    begun = tmp_path / "begun"
    asks = (
        "from rlhf_core.rollout.reward_function import RewardFunction\n"
        "from tests.rollout.test_rewards import asked\n"
        f"score = RewardFunction('policy.rewards.0', {function().spec!r}, time_limit=600)\n"
        "print(score._process.pid, flush=True)\n"
        f"score(asked(reference={str(begun)!r}), {text!r})\n"
    )
    asker = forked.python(asks)
    computes = psutil.Process(int(asker.stdout.readline()))
    until(begun.exists, "the function was not called")
    os.kill(asker.pid, signal.SIGKILL)
    assert psutil.wait_procs([computes], timeout=PATIENCE_SECONDS) == ([computes], [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "alone"}, r"takes \(response\); expected \(prompt, response, reference\)"),
        ({"name": "gone"}, "no attribute 'gone'"),
        ({"file": "broken.py"}, "SyntaxError"),
        ({"file": "none.py"}, "none.py cannot be read: No such file"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_in_one_line(function, given, said):
    with pytest.raises(ConfigError, match=said) as refused:
        function(**given)
    assert "\n" not in str(refused.value)


def test_a_function_that_the_environment_does_not_allow_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_ALLOWED_FUNCTIONS", raising=False)
    with pytest.raises(ConfigError, match="RLHF_ALLOWED_FUNCTIONS"):
        RewardFunction("policy.rewards.0", f"{tmp_path}/rewards.py:score", time_limit=1)


def test_ensembles_by_hand():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    for how, expected in (("mean", [2.0, 0.0]), ("worst", [1.0, 0.0]), ("uncertainty", [1.5, 0.0])):
        assert combine_ensemble(scores, how, uncertainty_coef=0.5).tolist() == expected


def test_a_reference_is_kept_and_its_absence_is_not_written():
    row = {"prompt_id": "a", "prompt": [{"role": "user", "content": "1 + 1?"}]}
    for given, kept in ((2, "2"), (0.5, "0.5"), (["a", "b"], '["a", "b"]'), (None, None)):
        assert Prompt.model_validate({**row, "reference": given}).reference == kept
    assert "reference" not in Prompt.model_validate(row).model_dump_json()
    kept = Prompt.model_validate({**row, "reference": "two"})
    assert Prompt.model_validate_json(kept.model_dump_json()) == kept


def scored_rollout():
    responses = [ids(4), ids(5), ids(6)]
    rollout = Rollout(
        [ids(1)] * 3, responses, torch.zeros(3, 1), torch.ones(3, 1).bool(), torch.ones(3).bool()
    )
    zeros = torch.zeros(3, 1)
    return ScoredRollout(rollout, zeros, zeros, zeros, torch.tensor([1.0, -2.0, 5.0]))


def terms(*made):
    prompts = {name: asked(name, "4") for name in "abc"}
    texts = SimpleNamespace(response_text=lambda tokens: str(tokens[0]))
    return RewardTerms(made, prompts, texts)


SAMPLED = [SimpleNamespace(prompt_id=name) for name in "abc"]
MEAN = ensemble("mean", uncertainty_coef=0.5)
OWN = Term("0_model", [own_scores], MEAN, "own")


def right(answers):
    rows = zip(answers.prompts, answers.texts, strict=True)
    return [10.0 * (text == prompt.reference) for prompt, text in rows]


def test_terms_are_scaled_clipped_and_weighted_each_on_its_own():
    settings = PpoConfig.model_validate(
        {
            "rewards": [
                {"kind": "model", "clip": 3.0},
                {"kind": "function", "function": "r.py:right", "weight": 0.5, "clip": 8.0},
                {"kind": "model", "scale": True},
            ]
        }
    ).rewards
    made = [OWN, Term("1_right", [right], MEAN, "right"), replace(OWN, name="2_scaled")]
    scored = terms(*made).of(SAMPLED, scored_rollout())
    assert scored.terms["0_model"].tolist() == [1.0, -2.0, 5.0]
    assert scored.terms["1_right"].tolist() == [10.0, 0.0, 0.0]
    total, moments = sum_terms(scored, settings, {})
    spread = scored.scores.std(correction=0)
    expected = torch.tensor([1.0 + 4.0, -2.0, 3.0]) + scored.scores / spread
    torch.testing.assert_close(total.scores, expected)
    assert moments["2_scaled"].std == pytest.approx(float(spread))
    earlier = {"2_scaled": RunningMoments(count=1_000, mean=0.0, sum_squares=4_000.0)}
    again, _ = sum_terms(scored, settings, earlier)
    assert float((again.scores - expected).abs().max()) > 0.1
    assert sum_terms(scored_rollout(), (), {})[0].scores.tolist() == [1.0, -2.0, 5.0]


def test_an_ensemble_may_hold_the_runs_own_model():
    both = Term("0_model", [own_scores, right], ensemble("worst", uncertainty_coef=0.5), "")
    scored = terms(both).of(SAMPLED, scored_rollout())
    assert scored.terms["0_model"].tolist() == [1.0, -2.0, 0.0]


def test_a_term_that_is_not_finite_is_named():
    broken = Term("1_broken", [lambda answers: [1.0, float("nan"), 1.0]], MEAN, "")
    with pytest.raises(RewardError, match=r"1_broken.*'5'"):
        terms(broken).of(SAMPLED, scored_rollout())


def test_what_a_term_is_made_of_and_the_references_tell_runs_apart():
    assert terms(OWN).identity() != terms(replace(OWN, identity="other")).identity()
    other = terms(OWN)
    changed = {
        name: row.model_copy(update={"reference": "5"}) for name, row in other.prompts.items()
    }
    assert other.identity() != replace(other, prompts=changed).identity()


FUNCTION = {"kind": "function", "function": "rewards.py:score"}


def test_settings_of_terms():
    settings = PpoConfig.model_validate({"rewards": [{"kind": "model"}, FUNCTION]})
    assert [type(term) for term in settings.rewards] == [ModelTermConfig, FunctionTermConfig]
    for wrong, said in (
        ({"combine": "worst", "models": ("one",)}, "at least two models"),
        ({"uncertainty_coef": 1.0}, "uncertainty alone"),
        ({"models": ("one", "one")}, "names one model twice"),
    ):
        with pytest.raises(ValueError, match=said):
            ModelTermConfig(kind="model", **wrong)


def test_how_long_a_term_is_waited_for_decides_nothing_of_a_run():
    def known_by(**changes):
        policy = PpoConfig.model_validate({"rewards": [{**FUNCTION, **changes}]})
        config = PipelineConfig.model_construct(policy=policy)
        return config_digest(config), run_fingerprint(policy, [], [], seed=0)

    assert known_by(time_limit=9) == known_by()
    for one, other in zip(known_by(weight=9), known_by(), strict=True):
        assert one != other


def test_runs_of_builds_without_engines_are_known_by_the_same():
    """A setting at what all did before it was there repeats no stage and loses no checkpoint."""
    policy = PpoConfig()
    config = PipelineConfig.model_construct(policy=policy)
    before = config.model_dump_json(
        exclude={**RESULT_NEUTRAL, "policy": {"rollouts", "distributed"}}
    )
    assert config_digest(config) == sha256(before.encode()).hexdigest()
    before = policy.model_dump_json(exclude={"rollouts", "distributed"})
    assert (
        run_fingerprint(policy, [], [], seed=0) == sha256(f"{before} seed=0".encode()).hexdigest()
    )
