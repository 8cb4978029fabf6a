"""`rlhf init`: from one's own files and model to a folder whose every file is right."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rlhf_core.config import load_config
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.stages.preflight import check_inputs
from rlhf_core.stages.project.new_project import Wanted, init_project
from rlhf_flows.servers.installation import module_entrypoint
from rlhf_flows.servers.pools import read_pools

BASE = Path(__file__).parents[2] / "data/base"


@pytest.fixture(autouse=True)
def somebody(monkeypatch, forked_tools):
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")


def votes(path, number, **more):
    rows = [
        {
            "question": f"How do I get to room {n}, and when is it open?",
            "answer_a": f"Take the stairs to floor {n}.",
            "answer_b": "Ask at the desk, it is open from nine to five.",
            "better": "ab"[n % 2],
            **more,
        }
        for n in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def made(tmp_path):
    """A folder made of 300 rows."""
    wanted = Wanted(str(BASE), (votes(tmp_path / "mine.jsonl", 300),))
    return init_project(tmp_path / "Own Desk", wanted)


def test_what_is_written_can_be_used_from_anywhere_and_is_committed(made, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load_config(made.directory / made.settings)
    check_inputs(config)  # base model and files are where the settings say
    assert config.project == "own-desk"
    assert (made.directory / "data/raw/mine.jsonl").read_bytes() == (
        tmp_path / "mine.jsonl"
    ).read_bytes()
    status = subprocess.run(
        ["git", "status", "--short"], cwd=made.directory, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
    assert (made.directory / "data/raw/mine.jsonl.dvc").is_file()


def test_a_base_model_in_the_folder_is_found_from_the_clone_that_publishes(tmp_path, monkeypatch):
    """Publishing prepares in a clone, which has nothing that neither git nor DVC keeps."""
    shutil.copytree(BASE, tmp_path / "own/models/base")
    monkeypatch.chdir(tmp_path / "own")
    made = init_project(
        tmp_path / "own", Wanted("models/base", (votes(tmp_path / "mine.jsonl", 200),))
    )
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", made.directory, clone], check=True)
    assert Path(load_config(clone / made.settings).model.base) == tmp_path / "own/models/base"


def test_every_flow_has_its_deployment_and_every_deployment_the_settings(made):
    own = read_pools(made.directory / "prefect.yaml")
    shipped = read_pools(Path(__file__).parents[2] / "prefect.yaml")
    assert own.deployments == tuple(module_entrypoint(name) for name in shipped.deployments)
    assert own.limits == shipped.limits
    written = yaml.safe_load((made.directory / "prefect.yaml").read_text())
    files = {(one["parameters"]["settings"] or {}).get("file") for one in written["deployments"]
             if one["parameters"]}  # fmt: skip
    assert files == {made.settings, None}


@pytest.mark.parametrize(("rows", "goal"), [(200, "try"), (1_200, "better")])
def test_gates_ask_for_what_the_rows_can_show(tmp_path, rows, goal):
    made = init_project(
        tmp_path / "own", Wanted(str(BASE), (votes(tmp_path / "mine.jsonl", rows),))
    )
    config = load_config(made.directory / made.settings)
    heldout = rows * config.data.heldout_fraction
    assert made.goal == goal
    for gate in config.gates.policy:
        assert 30 <= gate.min_samples <= heldout
    for gate in config.gates.reward:
        assert 30 <= gate.min_samples <= heldout * config.data.judge_fraction
    assert config.promotion.min_samples <= heldout  # else no champion is ever followed
    win_rate = next(gate for gate in config.gates.policy if gate.metric == "policy/win_rate")
    assert (win_rate.at_least > 0.5) is (goal == "better")


def test_rows_that_are_too_long_for_the_model_count_for_nothing(tmp_path):
    """Four answers of five are longer than the model reads: the others alone are held out."""
    file = Path(votes(tmp_path / "mine.jsonl", 1_000))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[:800]:
        row["answer_a"] += " And then up again." * 100
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = init_project(tmp_path / "own", Wanted(str(BASE), (str(file),)))
    config = load_config(made.directory / made.settings)
    heldout = 200 * config.data.heldout_fraction
    for gate in (*config.gates.policy, *config.gates.sft):
        assert gate.min_samples <= heldout
    assert "about 68 of 200 dialogues that fit" in (made.directory / made.settings).read_text()
    assert config.data.min_pairs <= 100
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:900]))
    with pytest.raises(DataError, match=r"100 dialogues .* that fit into .* tokens; with fewer"):
        init_project(tmp_path / "other", Wanted(str(BASE), (str(file),)))


def test_what_is_there_is_never_written_over(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"README\.md is there already"):
        init_project(own, Wanted(str(BASE), (votes(tmp_path / "mine.jsonl", 200),)))
    assert [path.name for path in own.iterdir()] == ["README.md"]


def test_a_file_of_something_else_and_too_few_rows_are_refused_and_leave_nothing(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "When?"}\n' * 3)
    for file, says in (
        (str(tmp_path / "prompts.jsonl"), "give it as --prompts"),
        (votes(tmp_path / "few.jsonl", 100), "100 dialogues"),
    ):
        with pytest.raises(DataError, match=says):
            init_project(tmp_path / "own", Wanted(str(BASE), (file,)))
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("place", ["files/votes.jsonl", "data/raw/votes.jsonl"])
def test_files_that_lie_in_the_folder_are_kept_for_versions_too(tmp_path, place):
    file = tmp_path / "own" / place
    file.parent.mkdir(parents=True)
    votes(file, 200)
    made = init_project(tmp_path / "own", Wanted(str(BASE), (str(file),)))
    assert file.is_file()
    kept = made.directory / "data/raw/votes.jsonl"
    assert kept.read_bytes() == file.read_bytes()
    assert kept.with_name("votes.jsonl.dvc").is_file()
    assert load_config(made.directory / made.settings).data.preferences.path.resolve() == kept
    assert "all that was written committed" in made.lines[-1]


def test_a_file_that_git_keeps_already_is_left_to_it(tmp_path):
    file = tmp_path / "own/data/raw/votes.jsonl"
    file.parent.mkdir(parents=True)
    votes(file, 200)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "mine"]):
        subprocess.run(["git", *words], cwd=tmp_path / "own", check=True)
    made = init_project(tmp_path / "own", Wanted(str(BASE), (str(file),)))
    assert not file.with_name("votes.jsonl.dvc").exists()
    assert "all that was written committed" in made.lines[-1]


def test_the_readme_says_how_rows_of_the_same_shape_are_added(made):
    readme = (made.directory / "README.md").read_text()
    (line,) = (
        line for line in readme.splitlines() if line.startswith("rlhf data add votes.jsonl ")
    )
    assert "--format flat" in line


def test_a_folder_inside_another_repository_says_why_it_has_no_versions(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    made = init_project(tmp_path / "own", Wanted(str(BASE), (votes(tmp_path / "m.jsonl", 200),)))
    assert "it lies in the git repository" in made.lines[-1]
    assert not (made.directory / ".git").exists()
    assert not (made.directory / ".dvc").exists()
    assert "none of its own" in (made.directory / "README.md").read_text()
