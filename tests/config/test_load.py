"""Settings: one file, validated once, every mistake named with its source and key."""

from pathlib import Path

import pytest
import yaml

from rlhf_core.config import PipelineConfig, config_digest, load_config, load_preparation
from rlhf_core.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

MINIMAL = """
model: {base: some/model}
data: {preferences: {path: pairs.jsonl}}
policy: {algorithm: ppo, num_iterations: 3}
gates: {sft: [], reward: [], policy: [{metric: policy/win_rate, at_least: 0.5}]}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    assert isinstance(load_config(path), PipelineConfig)


def test_round_trips_through_json(minimal):
    config = load_config(minimal)
    again = PipelineConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert config_digest(again) == config_digest(config)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "policy.clip_epz",
            "0.1",
            "policy.clip_epz: no such setting; did you mean policy.clip_eps?",
        ),
        ("policy.clip_eps", "-1", "policy.clip_eps: Input should be greater than 0"),
        ("policy.algorithm", "pppo", "policy: Input tag 'pppo'"),
        ("sedd", "1", "sedd: no such setting; did you mean seed?"),
        (
            "data.gates",
            "[{metric: data/kripendorff_alpha, at_least: 0.3}]",
            "'data/kripendorff_alpha' is not measured; expected data/krippendorff_alpha, ",
        ),
        (
            "data.gates",
            "[{metric: data/style/hegde, at_most: 0.6}]",
            "'data/style/hegde' is not measured",
        ),
        (
            "data.gates",
            "[{metric: data/length_auc, at_most: 0.6, confidence: 0.9}]",
            "data/length_auc: confidence 0.9, but datasets are measured at 0.95",
        ),
        (
            "data.gates",
            "[{metric: data/production_shift_auc, at_most: 0.6}]",
            "data/production_shift_auc needs data.prompts.production_path",
        ),
    ],
)
def test_a_wrong_setting_names_its_source_and_key(minimal, key, value, says):
    with pytest.raises(ConfigError) as raised:
        load_config(minimal, {"sft.num_epochs": "1", key: value})
    source = f"--set {key}={value}"
    assert str(raised.value).startswith((f"{source}: ", f"{source}, with {minimal}"))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        ({"model.max_length": "64", "policy.max_new_tokens": "64"}, 1),
        (
            {
                "model.max_length": "64",
                "policy.max_new_tokens": "32",
                "model.max_prompt_length": "33",
            },
            33,
        ),
    ],
)
def test_a_prompt_and_its_response_must_fit_the_length(minimal, overrides, prompt):
    fits = {**overrides, "model.max_length": "65"}
    assert load_config(minimal, fits).longest_prompt() == prompt
    with pytest.raises(ConfigError) as raised:
        load_config(minimal, overrides)
    changes, _, rest = str(raised.value).partition(f", with {minimal}: ")
    assert changes.startswith("--set model.max_length=64")
    # 64 tokens of response would be too many without the change, too: it is the default.
    assert "--set policy" not in changes
    assert rest.startswith(f"model.max_length 64 has no room for a prompt of {prompt} tokens")
    assert str(raised.value).endswith("(policy.max_new_tokens)")


def test_settings_of_the_other_algorithm_are_refused(minimal):
    with pytest.raises(
        ConfigError,
        match=r"policy\.num_iterations: no such setting here; it goes with algorithm: ppo",
    ):
        load_config(minimal, {"policy.algorithm": "dpo"})


def test_an_override_reaches_a_nested_key(minimal):
    config = load_config(minimal, {"policy.optimizer": "{learning_rate: 0.5}", "seed": "7"})
    assert config.policy.optimizer.learning_rate == 0.5
    assert config.seed == 7


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_naming_one_optimizer_setting_keeps_the_stages_defaults_for_the_rest(minimal, stage):
    section = stage if stage in ("sft", "reward") else "policy"
    child = minimal.parent / "child.yaml"
    algorithm = "" if section == stage else f"algorithm: {stage}, "
    child.write_text(f"extends: minimal.yaml\n{section}: {{{algorithm}}}\n")
    whole = getattr(load_config(child), section).optimizer
    child.write_text(
        f"extends: minimal.yaml\n{section}: {{{algorithm}optimizer: {{weight_decay: 0.125}}}}\n"
    )
    partial = getattr(load_config(child), section).optimizer
    assert partial == whole.model_copy(update={"weight_decay": 0.125})


def test_each_policy_algorithm_has_its_own_optimizer_defaults(minimal):
    ppo = load_config(minimal, {"policy.optimizer.learning_rate": "0.5"}).policy.optimizer
    found = (ppo.adam_beta2, ppo.adam_eps, ppo.schedule, ppo.warmup_fraction)
    assert found == (0.999, 1e-5, "linear", 0.0)
    dpo = load_config(CONFIGS[0].parent / "demo-dpo.yaml").policy.optimizer
    assert (dpo.learning_rate, dpo.schedule, dpo.warmup_fraction) == (1e-4, "linear", 0.05)


def test_a_shared_trunk_must_say_how_fast_its_value_head_learns(minimal):
    with pytest.raises(ConfigError, match="share_trunk needs a value_learning_rate"):
        load_config(minimal, {"policy.share_trunk": "true"})
    load_config(minimal, {"policy.share_trunk": "true", "policy.value_learning_rate": "0.001"})


CRITIC_FREE = {"policy.responses_per_prompt": "4"}


@pytest.mark.parametrize("advantages", ["rloo", "grpo", "dr_grpo"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share_trunk", "true"),
        ("value_learning_rate", "0.001"),
        ("critic_warmup_iterations", "1"),
        ("value_clip_eps", "0.1"),
        ("value_coef", "0.5"),
        ("gamma", "0.9"),
        ("gae_lambda", "0.9"),
    ],
)
def test_what_only_a_value_function_reads_is_refused_where_there_is_none(
    advantages, key, value, minimal
):
    changes = {"policy.advantages": advantages, **CRITIC_FREE}
    with pytest.raises(ConfigError) as raised:
        load_config(minimal, {**changes, f"policy.{key}": value})
    said = str(raised.value)
    assert f"policy: advantages {advantages} has no value function that would read {key}" in said
    assert "\n" not in said
    # Written out, every key is there with its default; and so a file that extends may put it back.
    config = load_config(minimal, changes)
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    default = yaml.safe_dump(getattr(config.policy, key)).splitlines()[0]
    assert load_config(minimal, {**changes, f"policy.{key}": default}) == config


@pytest.mark.parametrize("advantages", ["rloo", "grpo", "dr_grpo"])
def test_critic_free_advantages_need_a_group_and_are_not_whitened_by_themselves(
    advantages, minimal
):
    changes = {"policy.advantages": advantages}
    with pytest.raises(ConfigError, match=r"responses_per_prompt of at least 2 .*, found 1"):
        load_config(minimal, changes)
    policy = load_config(minimal, {**changes, **CRITIC_FREE, "policy.num_iterations": "1"}).policy
    assert (policy.whitens, policy.warmup_iterations, policy.needs_value_model) == (False, 0, False)
    asked = {**changes, **CRITIC_FREE, "policy.whiten_advantages": "true"}
    assert load_config(minimal, asked).policy.whitens


@pytest.mark.parametrize("confidence", ["0.95", "0.999"])
def test_an_interval_needs_resamples_beyond_its_ends(minimal, confidence):
    needed = {"0.95": 80, "0.999": 4_000}[confidence]
    enough = {"evaluation.confidence": confidence, "evaluation.num_resamples": str(needed)}
    load_config(minimal, enough)
    with pytest.raises(ConfigError, match=f"too few for confidence {confidence}; {needed} are"):
        load_config(minimal, {**enough, "evaluation.num_resamples": str(needed - 1)})


def test_a_gate_needs_them_too_and_a_bound_that_binds(minimal):
    gate = "metric: policy/win_rate, confidence: 0.999"
    with pytest.raises(ConfigError, match=r"gates\.policy: \S+ at confidence 0\.999 needs"):
        load_config(minimal, {"gates.policy": f"[{{{gate}, at_least: 0.5}}]"})
    for bound in ("at_least: -.inf", "at_most: .inf", "at_least: .nan"):
        with pytest.raises(ConfigError, match="finite"):
            load_config(minimal, {"gates.policy": f"[{{metric: policy/win_rate, {bound}}}]"})


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("sft/heldout_nl", {}),
        ("reward/heldout_acuracy", {}),
        ("policy/winrate", {}),
        ("policy/upselling_increase", {}),
        ("policy/kl", {"evaluation.temperature": "0"}),
        ("policy/proxy_gap", {"policy": "{algorithm: dpo}"}),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_before_training(minimal, gate, changes):
    stage = gate.partition("/")[0]
    changes = {**changes, f"gates.{stage}": f"[{{metric: {gate}, at_most: 0.9}}]"}
    with pytest.raises(ConfigError, match=f"{gate} is not measured .* {stage}/"):
        load_config(minimal, changes)
    own = {"evaluation.monitors.phrases": "{upselling: [buy now]}"}
    if "upselling" in gate:
        load_config(minimal, {**changes, **own})


def test_a_seed_that_no_generator_takes_is_refused(minimal):
    assert load_config(minimal, {"seed": str(2**32 - 1)}).seed == 2**32 - 1
    with pytest.raises(ConfigError, match="seed"):
        load_config(minimal, {"seed": str(2**32)})


def test_an_override_through_a_value_is_refused(minimal):
    with pytest.raises(ConfigError, match="'base' is a value"):
        load_config(minimal, {"model.base.name": "x"})


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1", "\x00"])
def test_a_file_that_is_no_mapping_is_one_clear_error(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")


def test_extends_merges_sections(minimal):
    child = minimal.parent / "child.yaml"
    child.write_text("extends: minimal.yaml\nseed: 3\npolicy: {clip_eps: 0.1}\n")
    config = load_config(child)
    assert (config.seed, config.policy.clip_eps, config.policy.num_iterations) == (3, 0.1, 3)


def test_extends_replaces_a_section_whose_algorithm_changes(minimal):
    child = minimal.parent / "child.yaml"
    child.write_text("extends: minimal.yaml\npolicy: {algorithm: dpo, beta: 0.3}\n")
    assert load_config(child).policy.beta == 0.3


def test_extends_in_a_circle_is_refused(minimal):
    child = minimal.parent / "child.yaml"
    child.write_text("extends: child.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(child)


def test_a_gate_needs_exactly_one_bound(minimal):
    for gate in ("{metric: a}", "{metric: a, at_least: 0, at_most: 1}"):
        with pytest.raises(ConfigError, match="exactly one of at_least and at_most"):
            load_config(minimal, {"gates.sft": f"[{gate}]"})


DOCUMENTED = {
    "missing_eos_penalty": 1.0,
    "temperature": 1.0,
    "kl_placement": "reward",
    "kl_estimator": "k1",
    "kl_controller": "fixed",
    "kl_coef": 0.05,
    "target_kl": 6.0,
    "kl_horizon": 10_000,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "advantages": "gae",
    "whitens": True,
    "scale_scores": False,
    "clip_scores": None,
    "value_clip_eps": 0.2,
    "value_coef": 0.1,
    "num_epochs": 4,
    "clip_eps": 0.2,
    "clip_eps_high": None,
    "loss_average": "tokens",
    "critic_warmup_iterations": 2,
    "ptx_coef": 0.0,
    "max_ratio_error": 1e-4,
    "max_logprob_mismatch": 1.05,
}


def test_the_defaults_of_ppo_are_those_of_its_sources(minimal):
    """docs/ppo.md names the source of each."""
    policy = load_config(minimal).policy
    assert {name: getattr(policy, name) for name in DOCUMENTED} == DOCUMENTED
    optimizer = policy.optimizer
    assert (optimizer.adam_eps, optimizer.max_grad_norm, optimizer.schedule) == (
        1e-5,
        1.0,
        "linear",
    )


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2"])
def test_a_moment_that_never_fades_is_refused(minimal, name):
    with pytest.raises(ConfigError, match=f"{name}: Input should be less than 1"):
        load_config(minimal, {f"policy.optimizer.{name}": "1.0"})


JUDGE = "{kind: ai, url: 'http://judge/v1', model: m, principles: [Be kind.]}"


def test_feedback_decides_nothing_of_a_run(minimal):
    """Stages are done once for a digest: labels asked for otherwise must not repeat them."""
    plain = load_config(minimal)
    labelled = load_config(minimal, {"feedback.labeler": JUDGE})
    assert config_digest(labelled) == config_digest(plain)
    assert config_digest(load_config(minimal, {"seed": "1"})) != config_digest(plain)
    older = plain.model_dump(mode="json", exclude={"feedback"})
    assert PipelineConfig.model_validate(older) == plain


def test_extends_replaces_a_labeler_whose_kind_changes(minimal):
    minimal.write_text(minimal.read_text() + f"feedback: {{seed: 3, labeler: {JUDGE}}}\n")
    child = minimal.parent / "child.yaml"
    child.write_text(
        "extends: minimal.yaml\nfeedback: {labeler: {kind: label_studio, url: 'http://labels'}}\n"
    )
    feedback = load_config(child).feedback
    assert (feedback.seed, feedback.labeler.kind) == (3, "label_studio")
    child.write_text("extends: minimal.yaml\nfeedback: {labeler: {concurrency: 9}}\n")
    assert load_config(child).feedback.labeler.concurrency == 9


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("labeler.kind", "crowd", "'crowd'"),
        ("labeler.principles", "[]", "at least 1 item"),
        ("labeler.principles_per_pair", "2", "principles_per_pair 2, but there are 1 principles"),
        ("labeler.url", "judge:8000", "should match pattern"),
        ("temperature", "0", "greater than 0"),
        ("votes_per_pair", "0", "greater than or equal to 1"),
    ],
)
def test_wrong_feedback_settings_are_refused(minimal, key, value, says):
    changes = {"feedback.labeler": JUDGE, f"feedback.{key}": value}
    with pytest.raises(ConfigError, match=says):
        load_config(minimal, changes)


def test_preparation_needs_model_and_data_alone(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("model: {base: base}\ndata: {preferences: {path: rows.jsonl}}\n")
    assert load_preparation(path).policy is None
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert "policy: no such section in the settings, and this command needs it" in str(raised.value)
    assert "gates: no such section" in str(raised.value)
    with pytest.raises(ConfigError, match=r"data\.prefs: no such setting"):
        load_preparation(path, {"data.prefs": "1"})
    with pytest.raises(ConfigError, match=r"policy.*kl: no such setting"):
        load_preparation(path, {"policy.algorithm": "ppo", "policy.kl": "1"})
