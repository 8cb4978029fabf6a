"""The flow that closes the loop, and the commands that do its steps one by one."""

import sys

import pytest
from prefect.utilities.names import generate_slug
from typer.testing import CliRunner

from rlhf_core.config import config_digest
from rlhf_core.errors import ConfigError, RegistryError
from rlhf_core.feedback.results import CollectedPairs
from rlhf_core.schema import BatchResult, Comparison, DataVersion
from rlhf_core.stages import collect as collection
from rlhf_core.stages.labels import pull as label_pull
from rlhf_core.storage.records import read_records
from rlhf_flows import collect
from rlhf_flows.collect import collect_flow
from rlhf_flows.commands.cli import app, main
from rlhf_flows.engine import events
from rlhf_flows.engine.inputs import CollectInputs
from rlhf_flows.engine.runs import in_prefect
from tests.feedback.conftest import make_collection
from tests.feedback.servers import LabelStudio, serving

PUBLISHED = DataVersion(
    version="data-v7", commit="c" * 40, date="2026-01-02", batch="batch-0003.jsonl", rows=9,
    pairs=8, alpha=None, came=3, went=0, relabelled=1, sha256="a" * 64, dvc_md5="b" * 32,
)  # fmt: skip


@pytest.fixture
def asked(stages, monkeypatch):
    """Stands in for sampling, which needs a model: the models that were asked, each time."""
    found = []

    def sample(config, splits, models, choosers=()):
        found.append([model.uri for model in models])
        folder = make_collection(config.feedback.output)
        collection, _ = label_pull.read_collection(folder)
        return CollectedPairs(collection=collection, folder=folder)

    monkeypatch.setattr(collection, "collect_pairs", sample)
    for uri in ("models:/rlhf-policy@champion", "models:/rlhf-sft/1"):
        stages.models[uri] = stages._model("policy", _context(stages), uri).model_copy(
            update={"uri": uri}
        )
    return found


def _context(stages):
    from rlhf_core.schema import RunContext

    return RunContext(run_id="x", directory=stages.directory)


@pytest.fixture
def batches(monkeypatch, tmp_path):
    """Stands in for the publication, which needs a repository: the batches published."""
    seen = []

    def publish(source, **_):
        seen.append(read_records(source.path, Comparison))
        directory = tmp_path / "dataset"
        return BatchResult(version=PUBLISHED, directory=directory, set_aside={}, branch_moved=True)

    monkeypatch.setattr(label_pull, "publish", publish)
    return seen


@pytest.fixture
def sent(monkeypatch):
    """Events that would have gone to a server."""
    found = []
    monkeypatch.setattr(events, "emit", lambda event, **payload: found.append((event, payload)))
    return found


def test_where_the_labeler_answers_at_once_the_flow_ends_with_a_version_and_its_event(
    asked, batches, sent, with_feedback
):
    result = collect_flow(with_feedback(), CollectInputs())
    assert asked == [["models:/rlhf-policy@champion"]]
    assert result.pushed.asked == 6
    assert len(batches[0]) == 6
    assert result.pulled.published.version.version == "data-v7"
    assert result.next_step is None
    ((event, payload),) = sent
    assert event == "rlhf.data-version"
    assert payload["version"] == "data-v7"


def test_repeated_it_asks_and_publishes_nothing_again(asked, batches, sent, with_feedback):
    settings = with_feedback()
    for _ in range(2):
        result = collect_flow(settings, CollectInputs())
    assert (result.pushed.asked, result.pulled.published_before) == (0, 6)
    assert (len(batches), len(sent), result.next_step) == (1, 1, None)


def test_people_are_waited_for_by_another_run_with_the_collection(
    asked, batches, sent, with_feedback, monkeypatch
):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.good.token")
    studio = LabelStudio()
    with serving(studio) as url:
        settings = with_feedback({"kind": "label_studio", "url": url}, votes_per_pair=1)
        first = collect_flow(settings, CollectInputs())
        assert first.pulled is None
        assert first.next_step == (
            f"people label 6 pairs at {url}/projects/1;"
            " then run rlhf-collect again with collection abc"
        )
        early = collect_flow(settings, CollectInputs(collection="abc"))
        assert "no new pair has the votes it needs (1) yet" in early.next_step
        studio.annotate(2, 1, "left")
        second = collect_flow(settings, CollectInputs(collection="abc"))
    assert [pair.comparison_id for pair in batches[0]] == ["abc-00002"]
    assert (second.pulled.ready, second.next_step) == (1, None)
    assert len(asked) == len(sent) == 1


def test_what_a_worker_runs_says_what_it_waits_for(asked, batches, with_feedback, monkeypatch):
    monkeypatch.setattr(collect, "is_deployed", lambda: True)
    state = collect_flow(with_feedback(votes_per_pair=4), CollectInputs(), return_state=True)
    assert (state.name, state.type.value) == ("WAITING", "COMPLETED")
    assert state.message.startswith("abc: no new pair has the votes it needs (4) yet")
    assert not batches


def test_the_run_is_named_after_its_collection(monkeypatch):
    parameters = {"inputs": CollectInputs(collection="data/collected/abc")}
    named = {"parameters": parameters, "flow_name": "rlhf-collect", "name": "wise-otter"}
    monkeypatch.setattr(in_prefect, "flow_run", type("Run", (), named))
    assert in_prefect.name_of_run() == "collect abc"


@pytest.mark.parametrize("typed", ["Lower beta", "beta-0.05", "try 2", "beta", "my-test"])
def test_a_name_that_a_person_typed_stays(monkeypatch, typed):
    named = {"parameters": {"inputs": {}}, "flow_name": "rlhf-pipeline", "name": typed}
    monkeypatch.setattr(in_prefect, "flow_run", type("Run", (), named))
    assert in_prefect.name_of_run() == typed


@pytest.mark.parametrize("made_up", ["phi-tolfalas", "alpha12-canis-majoris-ring"])
def test_a_name_that_the_form_proposed_stands_behind_the_run(monkeypatch, made_up):
    named = {"parameters": {"inputs": {"run": "one"}}, "flow_name": "rlhf-sft", "name": made_up}
    monkeypatch.setattr(in_prefect, "flow_run", type("Run", (), named))
    assert in_prefect.name_of_run() == f"sft one ({made_up})"


def test_a_name_that_prefects_server_made_up_is_known(monkeypatch):
    for _ in range(20):
        assert in_prefect._is_made_up(generate_slug(2))


def test_models_and_dataset_can_be_named(asked, stages, with_feedback):
    settings = with_feedback().config
    inputs = CollectInputs(model="models:/rlhf-sft/1", against="models:/rlhf-policy@champion",
                           dataset="data-v3")  # fmt: skip
    collect.sample_pairs(settings, inputs)
    assert asked == [["models:/rlhf-sft/1", "models:/rlhf-policy@champion"]]
    assert "fetch_version data-v3" in stages.calls
    with pytest.raises(RegistryError, match="models:/nobody/1"):
        collect.sample_pairs(settings, CollectInputs(model="models:/nobody/1"))


def test_without_the_section_nothing_is_looked_for(asked, stages, settings):
    with pytest.raises(ConfigError, match="feedback: no such section"):
        collect.sample_pairs(settings.config, CollectInputs(model="models:/nobody/1"))
    assert not stages.calls


def test_the_section_is_no_part_of_what_a_run_was_started_with(with_feedback, settings):
    before = config_digest(settings.config)
    assert config_digest(with_feedback().config) == before


def rlhf(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_three_commands_go_from_a_model_to_a_version(
    asked, batches, sent, with_feedback, tmp_path
):
    config = str(with_feedback().file)
    said = rlhf("collect", config, "--json", "collected.json")
    assert "collection abc: 6 pairs by models:/rlhf-policy/3" in said
    assert f"next: rlhf label push abc {config}" in said
    assert (tmp_path / "collected.json").is_file()
    assert "simulated: 6 pairs asked about now, 0 before, of 6" in rlhf(
        "label", "push", "abc", config
    )
    none = rlhf("label", "pull", "abc", config, "--output", "none.jsonl", "--set",
                "feedback.votes_per_pair=9")  # fmt: skip
    assert "nothing new to publish" in none
    assert "publish it with" not in none
    written = rlhf("label", "pull", "abc", config, "--output", "batch.jsonl")
    assert "publish it with: rlhf data add batch.jsonl" in written
    assert not batches
    said = rlhf("label", "pull", "abc", config)
    assert "pairs with the votes they need (3): 6 new, 0 published before" in said
    assert "train on it: rlhf run CONFIG --set data.version=data-v7" in said
    assert [event for event, _ in sent] == ["rlhf.data-version"]
    assert "nothing new to publish" in rlhf("label", "pull", "abc", config)


def test_a_pull_that_comes_too_early_is_one_line_and_status_1(
    asked, batches, with_feedback, tmp_path
):
    config = str(with_feedback({"kind": "file"}, votes_per_pair=1).file)
    rlhf("collect", config)
    assert "file: 6 pairs wait for votes; nothing is sent" in rlhf("label", "push", "abc", config)
    votes = tmp_path / "votes.jsonl"
    votes.write_text('{"pair": "abc-00001", "annotator": "ann", "winner": "a"}\n')
    pull = ["label", "pull", "abc", config, "--votes", str(votes), "--at-least"]
    early = CliRunner().invoke(app, [*pull, "0.5"])
    assert early.exit_code == 1
    assert early.stderr.splitlines()[-1] == (
        "collection abc: 1 of 6 pairs have the votes they need (1) and are in no version yet; "
        "3 are needed (--at-least 0.5); nothing was published"
    )
    assert not batches
    assert isinstance(CliRunner().invoke(app, [*pull, "1.5"]).exception, ConfigError)
    assert "data-v7" in rlhf(*pull, "0.1")


def test_the_flow_waits_for_the_share_that_its_form_asks_for(asked, batches, sent, with_feedback):
    settings = with_feedback({"kind": "file"}, votes_per_pair=1)
    collect_flow(settings, CollectInputs())
    folder = settings.config.feedback.output / "abc"
    votes = settings.file.with_name("votes.jsonl")
    votes.write_text('{"pair": "abc-00001", "annotator": "ann", "winner": "a"}\n')
    with label_pull.exclusive(folder / label_pull.FOLDER):
        label_pull.add_file_votes(folder, votes, label_pull.read_collection(folder)[1])
    early = collect_flow(settings, CollectInputs(collection="abc", at_least=0.5))
    assert "1 new pairs have the votes they need (1), 3 are needed" in early.next_step
    assert not batches
    assert collect_flow(settings, CollectInputs(collection="abc")).next_step is None
    assert (len(batches), len(sent)) == (1, 1)


def test_a_command_without_the_section_is_one_clear_line(stages, config_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rlhf", "label", "push", "abc", str(config_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    *told, error = capsys.readouterr().err.splitlines()
    assert " label push started; " in told[0]
    assert error.startswith("error: feedback: no such section")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"pairs": 20}, "name its run, too"),
        ({"evaluation": "one", "model": "models:/rlhf-sft/1"}, "leave model, against and dataset"),
        ({"evaluation": "nowhere"}, "no such run"),
    ],
)
def test_an_evaluation_is_asked_about_alone_and_has_to_be_there(asked, with_feedback, inputs, said):
    with pytest.raises(ConfigError, match=said):
        collect.sample_pairs(with_feedback().config, CollectInputs(**inputs))
    assert asked == []
