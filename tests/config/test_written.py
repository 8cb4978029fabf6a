"""What a configuration writes down is read in one way or refused, with its line."""

import pytest
import yaml

from rlhf_core.config import load_config
from rlhf_core.config.written import read_written
from rlhf_core.errors import ConfigError
from rlhf_flows.engine.runs.settings import RunSettings

MINIMAL = """\
model: {base: some/model}
data: {preferences: {path: pairs.jsonl}}
policy: {algorithm: ppo, num_iterations: 3}
gates: {sft: [], reward: [], policy: [{metric: policy/win_rate, at_least: 0.5}]}
"""


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


def refusal(path, changes=None):
    with pytest.raises(ConfigError) as raised:
        load_config(path, changes or {})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    return str(raised.value)


@pytest.mark.parametrize(
    ("more", "line", "key", "first"),
    [
        ("gates: {sft: [], reward: [], policy: []}\n", 5, "gates", 4),
        ("seed: 1\n'seed': 1\n", 6, "seed", 5),
        ("sft:\n  optimizer:\n    learning_rate: 1.0\n    learning_rate: 2.0\n", 8,
         "sft.optimizer.learning_rate", 7),
        ("sft: {num_epochs: 1, num_epochs: 1}\n", 5, "sft.num_epochs", 5),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused_with_both_lines(minimal, more, line, key, first):
    minimal.write_text(MINIMAL + more)
    said = refusal(minimal)
    assert said.startswith(f"{minimal}, line {line}: {key}: ")
    assert f"(first in line {first})" in said
    child = minimal.parent / "child.yaml"
    child.write_text("extends: minimal.yaml\nseed: 3\n")
    assert refusal(child) == said


def test_a_key_given_twice_on_the_command_line_is_refused(minimal):
    for pair in (["seed=1", "seed=2"], ["policy.clip_eps=0.1", "policy={algorithm: dpo}"]):
        with pytest.raises(ConfigError, match=rf"--set {pair[1]}: \S+ is set to \S+ already"):
            assert RunSettings(file=minimal, overrides=tuple(pair)).config
    finer = ("policy.optimizer={learning_rate: 0.5}", "policy.optimizer.weight_decay=0.1")
    assert RunSettings(file=minimal, overrides=finer).config.policy.optimizer.weight_decay == 0.1
    assert "(" not in refusal(minimal, {"sft": "{num_epochs: 1, num_epochs: 2}"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('url: "http://me:hidden@host', "found unexpected end of stream (while scanning a quoted "),
        ("url: http: me:hidden@host", "mapping values are not allowed here"),
        ("url: [http://me:hidden@host", "line 6, column 1: expected ',' or ']'"),
    ],
)
def test_a_line_that_is_no_yaml_is_named_and_not_shown(minimal, line, said):
    """It may hold a password."""
    minimal.write_text(f"{MINIMAL}{line}\n")
    found = refusal(minimal)
    assert said in found
    assert f"{minimal}: not valid YAML: line " in found
    assert "hidden" not in found


TWO_READINGS = """010 08 -012 0o17 0b11 0x_1f 1_000 1_0.5 1.5_0 1:30 190:20:30 1:30.5 yes Yes NO off
On 010.5 -0x1f""".split()  # noqa: SIM905


@pytest.mark.parametrize("written", TWO_READINGS)
def test_what_versions_of_yaml_read_differently_is_refused(minimal, written):
    for text in (f"seed: {written}", f"data: {{preferences: {{path: x, split: {written}}}}}"):
        minimal.write_text(text)
        said = refusal(minimal)
        assert said.startswith(f"{minimal}, line 1: ")
        assert f": {written} means one thing to YAML 1.1 and another to YAML 1.2" in said
    minimal.write_text(MINIMAL)
    assert refusal(minimal, {"seed": written}).startswith(f"--set seed={written}: ")
    assert read_written(f"a: '{written}'", "x")[0] == {"a": written}


ONE_READING = """1 -1 +7 0 0x1F 1.5 -0.5 .5 5. 1.0e-3 1.0e+3 true True false null ~ text a:b 'no'
no_one data/1_000 v1_0 1:a""".split()  # noqa: SIM905


@pytest.mark.parametrize("written", ONE_READING)
def test_what_is_read_in_one_way_is_read_as_yaml_does(written):
    assert read_written(f"[{written}]", "x")[0] == yaml.safe_load(f"[{written}]")


def test_a_number_with_an_exponent_needs_no_dot():
    """YAML 1.1 asks for one, and for a sign; nobody means a text by 1e-5."""
    assert read_written("[1e-5, 2E3]", "x")[0] == [1e-5, 2000.0]


@pytest.mark.parametrize(
    ("key", "written", "says"),
    [
        ("policy.num_iterations", "true", "valid integer"),
        ("policy.kl_coef", "false", "valid number"),
        ("data.preferences.strengths", "{much: true}", "valid number"),
        ("policy.share_trunk", "1", "valid boolean"),
        ("policy.share_trunk", "'yes'", "valid boolean"),
        ("seed", "'7'", "valid integer"),
        ("policy.kl_coef", "'0.1'", "valid number"),
        ("policy.clip_eps", ".inf", "finite"),
        ("policy.target_kl", "1e999", "finite"),
        ("policy.clip_eps", ".nan", "finite"),
        ("sft.num_epochs", "9999999999999", "beyond 4,294,967,296"),
        ("policy.clip_eps", "1e300", "beyond 4,294,967,296"),
        ("evaluation.num_resamples", "1000000000", "less than or equal to 1000000"),
        ("sft.optimizer.learning_rate", "1000", "less than or equal to 10"),
        ("seed", "9" * 5_000, "a number of 5,000 digits"),
        ("seed", "2024-02-30", "valid integer"),
        ("seed", "[" * 2_000, "nested deeper"),
        ("seed", "[" * 60 + "]" * 60, "nested deeper"),
        ("seed", "&a [*a]", "nested deeper"),
        ("seed", "!!python/name:os.system", "tags are not read"),
        ("seed", "!!int 5", "tags are not read"),
        ("data.output", '"a\\0b"', "control character"),
        ("data.output", '"a\\e[31m"', "control character"),
        ("data.output", "x" * 300, "longer than a path can be"),
        ("model.base", "{? [1] : 2}", "a key is a word"),
    ],
)
def test_a_value_that_cannot_be_meant_names_file_line_and_key(minimal, key, written, says):
    *sections, leaf = key.split(".")
    path = minimal.parent / "child.yaml"
    text = "extends: minimal.yaml\n# a comment\n"
    text += "".join(f"{'  ' * i}{name}:\n" for i, name in enumerate(sections))
    path.write_text(f"{text}{'  ' * len(sections)}{leaf}: {written}\n")
    said = refusal(path)
    assert says in said
    if not written.startswith("[[") or written.endswith("]"):
        assert said.startswith(f"{path}, line {3 + len(sections)}: ")
        assert key.split(".")[0] in said
    assert says in refusal(minimal, {key: written})


def test_a_dataset_may_be_called_after_a_day(minimal):
    """No setting is a date, so it can only be the word; 30 February would be no date at all."""
    day = load_config(minimal, {"data.preferences.revision": "2024-02-30"})
    assert day.data.preferences.revision == "2024-02-30"


def test_aliases_cannot_grow_beyond_measure(minimal):
    doubled = "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 30))
    minimal.write_text(f"x0: &x0 [a, b]\n{doubled}")
    assert "more than 100,000 values" in refusal(minimal)


def test_a_change_to_one_use_of_an_alias_leaves_the_other(minimal):
    minimal.write_text(f"{MINIMAL}sft: &same {{num_epochs: 2}}\nreward: *same\n")
    config = load_config(minimal, {"sft.num_epochs": "5"})
    assert (config.sft.num_epochs, config.reward.num_epochs) == (5, 2)


def test_merged_mappings_give_way_to_what_is_written_beside_them(minimal):
    text = "sft: &a {num_epochs: 2, batch_size: 8}\nreward: {<<: *a, num_epochs: 3}\n"
    minimal.write_text(MINIMAL + text)
    reward = load_config(minimal).reward
    assert (reward.num_epochs, reward.batch_size) == (3, 8)


@pytest.mark.parametrize("pattern", ["(a)\\1", "so(?! true)", r"\bgrüße\b", "(?-i)Buy", r"\pLx"])
def test_phrases_have_the_whole_language_of_regular_expressions(minimal, pattern):
    changes = {"evaluation.monitors.phrases": yaml.safe_dump({"upselling": [pattern]})}
    assert load_config(minimal, changes)


def test_a_phrase_that_takes_exponential_time_is_refused(minimal, monkeypatch):
    """Here the first thousandth of a second is too long for anything, and the pattern harmless."""
    monkeypatch.setattr("rlhf_core.config.phrases._MAX_SECONDS", 1e-9)
    changes = {"evaluation.monitors.phrases": yaml.safe_dump({"upselling": [r"(\w+) \1"]})}
    assert "takes exponential time" in refusal(minimal, changes)


def test_a_file_that_extends_nothing_says_where_it_says_so(minimal):
    minimal.write_text("extends: nowhere.yaml\n")
    said = refusal(minimal)
    assert said == f"{minimal}, line 1: extends: nowhere.yaml: no such configuration file"
    minimal.write_text("extends: ..\n")  # a folder
    assert refusal(minimal) == f"{minimal}, line 1: extends: ..: no such configuration file"
    minimal.write_text("extends: minimal.yaml\n")
    assert "extends itself" in refusal(minimal)


@pytest.mark.parametrize("text", ["0o17", "1e5", "no", "010", "1:30", "null", "é 😀", "a: b", ""])
def test_a_text_of_the_run_form_stays_the_text_it_is(minimal, text):
    changes = {"data": {"preferences": {"split": text}}}
    settings = RunSettings.model_validate({"file": minimal, "changes": changes})
    assert settings.config.data.preferences.split == text


def test_a_fault_of_the_file_is_not_put_on_the_command_line(minimal):
    text = minimal.read_text()
    minimal.write_text(f"{text}sed: 1\n")
    line = f"{minimal}, line {len(text.splitlines()) + 1}"
    assert refusal(minimal, {"seed": "7"}) == f"{line}: sed: no such setting; did you mean seed?"
    both = refusal(minimal, {"seed": "much"})
    assert f"{line}: sed: " in both
    assert "--set seed=much: seed: " in both


def test_a_fault_that_comes_by_extends_names_the_file_it_stands_in(minimal):
    child = minimal.parent / "child.yaml"
    child.write_text("extends: minimal.yaml\nseed: 7\n")
    minimal.write_text(minimal.read_text() + "sed: 1\n")
    assert refusal(child).startswith(f"{minimal}, line ")
    assert refusal(child) == refusal(child, {"policy.kl_coef": "0.2"})


LABELER = "{kind: ai, url: 'http://judge/v1', model: m, principles: [be kind]}"
ADDRESS = "https://ann:secret@host/v1"


@pytest.mark.parametrize(
    "changes",
    [
        {"feedback": f"{{labeler: {LABELER}}}", "feedback.labeler.url": ADDRESS},
        {"feedback.labeler": f"{{kind: label_studio, url: '{ADDRESS}'}}"},
        {"policy.rewards": f"[{{kind: endpoint, url: '{ADDRESS}'}}]"},
        {"policy.rollouts": f"{{engine: vllm, url: '{ADDRESS}'}}"},
        {"feedback": f"{{labeler: {LABELER}}}", "feedback.labeler.url": f"htp{ADDRESS[4:]}"},
        *(
            {"feedback": f"{{labeler: {LABELER}}}", "feedback.labeler.url": url}
            for url in (
                "http://ann:my/secret@host",
                "http://ann:my#secret@host",
                "http://ann:my?secret@host",
                "http://ann:my secret@host",
                "http:/ann:secret@host",
                "ann:secret@host",
            )
        ),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(minimal, changes):
    with pytest.raises(ConfigError, match=r"url: (no user and|String should match)") as refused:
        load_config(minimal, changes)
    assert "secret" not in str(refused.value)


def test_credentials_in_an_address_are_not_repeated(minimal):
    labeler = "{kind: ai, url: 'http://me:hunter2@host/v1', model: m, principles: [be kind]}"
    said = refusal(minimal, {"feedback": f"{{labeler: {labeler}}}"})
    assert said.startswith("--set feedback={labeler: {kind: ai, url: 'http://...@host/v1'")
    assert "hunter2" not in said


def test_a_section_that_only_the_command_line_begins_is_its_own(minimal):
    said = refusal(minimal, {"evaluation.judgee.kind": "heuristic"})
    assert said.startswith("--set evaluation.judgee.kind=heuristic: evaluation.judgee: ")
    said = refusal(minimal, {"policy.algorithm.deeper": "1"})
    assert said == "--set policy.algorithm.deeper=1: 'algorithm' is a value, not a section"
    assert refusal(minimal, {"seed": "1:30"}).startswith("--set seed=1:30: 1:30 means one thing")
