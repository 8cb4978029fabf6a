"""Where the relative paths of a settings file start."""

from pathlib import Path

import pytest

from rlhf_core.config import load_config
from rlhf_core.errors import ConfigError

MINIMAL = """
model: {base: some/model}
data: {preferences: {path: pairs.jsonl}}
policy: {algorithm: ppo, num_iterations: 3}
gates: {sft: [], reward: [], policy: [{metric: policy/win_rate, at_least: 0.5}]}
"""


def test_relative_paths_start_where_root_says_and_the_command_line_s_where_it_is_typed(
    tmp_path, monkeypatch
):
    (tmp_path / "own/models/base").mkdir(parents=True)
    (tmp_path / "own/mine.yaml").write_text(
        MINIMAL.replace("some/model", "models/base, chat_template: chat.jinja")
        .replace("{path: pairs.jsonl}}", "{path: pairs.jsonl}, cleaning: {contamination: [b.txt]},"
                 " more_preferences: [{path: /x/more.jsonl}, {path: 'hf://datasets/a/b'}]}")
        + "root: .\n"
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("own/mine.yaml"), {"data.prompts.path": "here.jsonl"})
    assert config.model.base == "own/models/base"
    assert config.model.chat_template == Path("own/chat.jinja")
    assert config.data.preferences.path == Path("own/pairs.jsonl")
    assert config.data.cleaning.contamination == (Path("own/b.txt"),)
    assert [str(one.path) for one in config.data.more_preferences] == [
        "/x/more.jsonl", "hf:/datasets/a/b",
    ]  # fmt: skip
    assert config.data.prompts.path == Path("here.jsonl")
    monkeypatch.chdir(tmp_path / "own")
    assert load_config(Path("mine.yaml")).data.preferences.path == Path("pairs.jsonl")


def test_files_of_functions_and_folders_of_models_among_rewards_start_there_too(
    tmp_path, monkeypatch
):
    (tmp_path / "own/models/liked").mkdir(parents=True)
    (tmp_path / "own/mine.yaml").write_text(
        MINIMAL.replace(
            "num_iterations: 3",
            "num_iterations: 3, rewards: [{kind: function, function: 'rewards.py:no_lists'},"
            " {kind: function, function: 'package.rewards:short'},"
            " {kind: model, models: [run, models/liked, 'models:/liked/1', some/name]}]",
        )
        + "evaluation: {rater: 'gold.py:rate'}\nroot: .\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("own/mine.yaml")).evaluation.rater == "own/gold.py:rate"
    functions, module, models = load_config(Path("own/mine.yaml")).policy.rewards
    assert functions.function == "own/rewards.py:no_lists"
    assert module.function == "package.rewards:short"
    assert models.models == ("run", "own/models/liked", "models:/liked/1", "some/name")
    monkeypatch.chdir(tmp_path / "own")
    assert load_config(Path("mine.yaml")).policy.rewards[0].function == "rewards.py:no_lists"


@pytest.mark.parametrize("root", ["3", "''", "[a]"])
def test_a_root_that_is_no_folder_s_name_is_refused_with_its_line(tmp_path, root):
    path = tmp_path / "mine.yaml"
    path.write_text(f"root: {root}\n{MINIMAL}")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 1: root: expected a folder"):
        load_config(path)
