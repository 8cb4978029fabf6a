"""Tasks of lm-evaluation-harness: what is trusted, what is refused and in which words."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

from rlhf_core.config import load_config
from rlhf_core.config.suites import LmEvalSuiteConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation import harness
from rlhf_core.evaluation.harness import load_tasks, tasks_digest

pytest.importorskip("lm_eval")

HOURS = ("nine", "ten", "two", "six")
PLACES = ("mill", "zoo", "pool", "castle", "market", "tower")
TASK = {
    "task": "opening",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "places.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "When does the {{place}} open?",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def task_file(tmp_path):
    """A task of one's own, and its data beside it."""
    rows = [
        {"place": place, "choices": [f"At {hour}." for hour in HOURS], "gold": number % 4}
        for number, place in enumerate(PLACES)
    ]
    (tmp_path / "places.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def write(name="opening.yaml", **settings):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**TASK, **settings}))
        return path

    return write


def suite(*tasks, **settings):
    return LmEvalSuiteConfig(name="town", tasks=[str(task) for task in tasks], **settings)


def test_a_task_file_is_loaded_with_the_data_beside_it(task_file):
    (task,) = load_tasks(suite(task_file()))
    assert (task.metric, task.filter, task.part) == ("acc", "none", "")
    assert len(task.task.eval_docs) == len(PLACES)
    assert task.task.get_config("num_fewshot") == 0


def test_several_tasks_are_parts_and_solved_examples_are_taken(task_file):
    other = task_file("closing.yaml", task="clo/sing", num_fewshot=0)
    tasks = load_tasks(suite(task_file(), other, num_fewshot=2))
    assert [one.part for one in tasks] == ["opening", "clo-sing"]
    # The harness leaves a task that says 0 at 0, whatever is asked.
    assert [one.task.get_config("num_fewshot") for one in tasks] == [2, 2]


def test_what_is_asked_is_known_by_task_included_file_data_and_harness(task_file, monkeypatch):
    path = task_file(include="base.yaml")
    base, data = path.with_name("base.yaml"), path.with_name("places.jsonl")
    base.write_text("description: Be brief.\n")
    found = [tasks_digest(suite(path))]
    assert tasks_digest(suite(path)) == found[0]
    for file, text in ((base, "description: Be long.\n"), (data, data.read_text()[:-1] + " }")):
        file.write_text(text)
        found.append(tasks_digest(suite(path)))
    task_file(include="base.yaml", doc_to_text="{{place}}?")
    found.append(tasks_digest(suite(path)))
    monkeypatch.setattr(harness, "version", lambda package: "9.9")
    found.append(tasks_digest(suite(path)))
    assert len(set(found)) == 5


def test_a_folder_of_data_is_found_and_known_by_what_is_in_it(task_file, tmp_path):
    folder = tmp_path / "town"
    folder.mkdir()
    (tmp_path / "places.jsonl").rename(folder / "test.jsonl")
    path = task_file(dataset_path="town", dataset_kwargs=None)
    (task,) = load_tasks(suite(path))
    assert len(task.task.eval_docs) == len(PLACES)
    before = tasks_digest(suite(path))
    rows = (folder / "test.jsonl").read_text().splitlines()
    (folder / "test.jsonl").write_text("\n".join(rows[1:]))
    assert tasks_digest(suite(path)) != before
    (task,) = load_tasks(suite(path))
    assert len(task.task.eval_docs) == len(PLACES) - 1


def test_a_file_in_the_home_folder_has_its_data_there(task_file, tmp_path, monkeypatch):
    task_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    (task,) = load_tasks(suite("~/opening.yaml"))
    assert len(task.task.eval_docs) == len(PLACES)


class Brought:
    """The harness's manager of its own tasks, which are these; none can be loaded."""

    read = 0

    def __init__(self):
        from lm_eval.tasks._index import Entry, Kind

        Brought.read += 1
        kinds = {
            "plain": (Kind.TASK, {"task": "plain"}),
            "writes_code": (Kind.TASK, {"task": "writes_code", "unsafe_code": True}),
            "below": (Kind.GROUP, {"group": "below", "task": ["plain", {"task": "writes_code"}]}),
            "above": (Kind.GROUP, {"group": "above", "task": [{"group": "below"}, "above"]}),
            "tagged": (Kind.TAG, None),
        }
        self.task_index = {
            name: Entry(name, kind, None if kind is Kind.TAG else "x.yaml", cfg)
            for name, (kind, cfg) in kinds.items()
        }
        self.task_index["tagged"].tags = {"writes_code"}
        self.all_tasks = sorted(kinds)

    def load(self, names):
        raise OSError(f"loaded {names}")


@pytest.fixture
def brought(monkeypatch):
    """Stands for the harness's own tasks, whose index takes 12 s to read."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Brought)
    monkeypatch.setattr(Brought, "read", 0)
    harness._brought.cache_clear()
    yield Brought
    harness._brought.cache_clear()


@pytest.mark.parametrize("name", ["writes_code", "below", "above", "tagged"])
def test_a_task_that_runs_what_a_model_writes_is_refused_before_its_code_is_loaded(brought, name):
    with pytest.raises(ConfigError, match=f"{name} runs code that a model writes"):
        load_tasks(suite(name))


def test_the_index_of_the_harness_is_read_once(brought):
    for name in ("plain", "plain"):
        with pytest.raises(DataError, match=r"cannot be used: OSError: loaded \['plain'\]"):
            load_tasks(suite(name))
    with pytest.raises(ConfigError, match=r"is no task .* did you mean plain"):
        load_tasks(suite("plane"))
    assert brought.read == 1


def test_code_runs_only_where_the_environment_names_its_digest(task_file, tmp_path, monkeypatch):
    path = task_file()
    (tmp_path / "ours.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
        "def text(doc):\n    return doc['place']\n"
    )
    # As a tag of YAML, and not the text of one.
    path.write_text(
        path.read_text().replace("When does the {{place}} open?", "!function ours.text")
    )
    path.write_text(path.read_text().replace("'!function ours.text'", "!function ours.text"))
    with pytest.raises(ConfigError, match=r"runs Python code .*RLHF_TRUSTED_CODE=") as e:
        load_tasks(suite(path))
    assert not (tmp_path / "ran").exists()
    digest = str(e.value).partition("RLHF_TRUSTED_CODE=")[2][:64]
    monkeypatch.setenv("RLHF_TRUSTED_CODE", digest)
    (task,) = load_tasks(suite(path))
    assert task.task.doc_to_text({"place": "mill"}) == "mill"
    (tmp_path / "ours.py").write_text("def text(doc):\n    return 'other'\n")
    with pytest.raises(ConfigError, match="runs Python code"):
        load_tasks(suite(path))


@pytest.mark.parametrize(
    ("measure", "better", "refused"),
    [
        ("return 0.25", True, True),
        ("return 1.0", True, False),
        ("return {'own': 0.25}", True, True),
        ("return 0.0", False, True),
    ],
)
def test_a_value_that_several_references_would_lose_is_refused(
    task_file, tmp_path, monkeypatch, measure, better, refused
):
    path = task_file(
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="choices",
        metric_list=[{"metric": "OWN", "aggregation": "mean", "higher_is_better": better}],
    )
    (tmp_path / "ours.py").write_text(f"def own(references, predictions):\n    {measure}\n")
    path.write_text(path.read_text().replace("OWN", "!function ours.own"))
    with pytest.raises(ConfigError) as e:
        load_tasks(suite(path))
    monkeypatch.setenv("RLHF_TRUSTED_CODE", str(e.value).partition("RLHF_TRUSTED_CODE=")[2][:64])
    (task,) = load_tasks(suite(path))
    if refused:
        with pytest.raises(DataError, match="several references"):
            task.task.process_results({"choices": ["a", "b"]}, ["c"])
    else:
        assert task.task.process_results({"choices": ["a", "b"]}, ["c"]) == {"own": 1.0}


def test_a_template_reaches_nothing_but_the_item(task_file):
    path = task_file(doc_to_text="{{place.__class__}}")
    with pytest.raises(DataError, match="SecurityError"):
        load_tasks(suite(path))


@pytest.mark.parametrize(
    ("settings", "asked", "said"),
    [
        ({"task": ["a", "b"]}, {}, "is a group of tasks"),
        ({"group": "a"}, {}, "is a group of tasks"),
        ({"task": ""}, {}, "task: expected the task's name"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, {}, r"there is no file gone\.jsonl"),
        ({"dataset_kwargs": {}}, {}, "names no data_files"),
        ({"dataset_kwargs": {"data_files": "../"}}, {}, r"there is no file \.\./"),
        ({"use_prompt": "prompts.yaml:first"}, {}, "use_prompt takes a template from elsewhere"),
        ({"dataset_path": "pandas"}, {}, "pandas is not read here"),
        ({"test_split": "dev"}, {}, "the task cannot be used: KeyError: 'dev'"),
        ({"doc_to_text": "{{plaice}}"}, {}, "'plaice' is undefined"),
        ({"include": "gone.yaml"}, {}, r"gone\.yaml cannot be read"),
        ({"include": "opening.yaml"}, {}, "includes itself"),
        ({"output_type": "guess"}, {}, "invalid output_type 'guess'"),
        ({"metric_list": [{"metric": "accc"}]}, {}, "accc is no metric of the harness; it has acc"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, {}, "no metric of the harness"),
        ({"unsafe_code": True}, {}, "runs code that a model writes"),
        ({"output_type": "loglikelihood_rolling", "metric_list": None}, {}, "perplexity of whole"),
        ({}, {"metric": "f1"}, "does not measure f1; it has acc"),
        ({}, {"metric": "acc,strict"}, "does not measure acc,strict"),
    ],
)
def test_a_task_that_cannot_be_used_is_told_in_one_line(task_file, settings, asked, said):
    with pytest.raises((ConfigError, DataError), match=said) as told:
        load_tasks(suite(task_file(**settings), **asked))
    assert "\n" not in str(told.value)
    assert "evaluation.suites: town" in str(told.value)


@pytest.mark.parametrize("text", ["- a", "a: [", "just words", "", "task: !other x"])
def test_a_file_that_is_no_task_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_tasks(suite(tmp_path / "x.yaml"))


def test_a_missing_file_and_one_task_twice_are_named(task_file, tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read: No such file"):
        load_tasks(suite(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match="opening is duplicated"):
        load_tasks(suite(task_file(), task_file("again.yaml")))


def test_empty_data_are_refused(task_file, tmp_path):
    path = task_file()
    (tmp_path / "places.jsonl").write_text("")
    with pytest.raises(DataError, match="the task cannot be used"):
        load_tasks(suite(path))


def test_without_the_package_its_extra_is_named(task_file, monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(harness, "version", missing)
    for ask in (load_tasks, tasks_digest):
        with pytest.raises(ConfigError, match=r"pip install 'rlhf-pipeline\[suites\]'"):
            ask(suite(task_file()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["a", "a"]}, "'a' is duplicated"),
        ({"tasks": " "}, "an empty name"),
        ({"tasks": "a", "limit": 0}, "limit"),
        ({"tasks": "a", "path": "x"}, "path"),
    ],
)
def test_settings_that_ask_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LmEvalSuiteConfig(name="town", **settings)


@pytest.mark.parametrize("written", ["a.yaml", "[a.yaml]", "[a.yaml, b.yaml]"])
def test_tasks_are_read_from_a_file_of_settings(tmp_path, written):
    demo = Path(__file__).parents[2] / "configs" / "demo.yaml"
    suites = f"evaluation: {{suites: [{{kind: lm_eval, name: town, tasks: {written}}}]}}"
    path = tmp_path / "settings.yaml"
    path.write_text(f"extends: {demo}\n{suites}\n")
    (found,) = load_config(path).evaluation.suites
    assert found.tasks == tuple(written.strip("[]").split(", "))
