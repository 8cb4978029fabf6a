"""`rlhf label push`: votes from whom the settings name, each asked for once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_core.errors import ConfigError, DataError, LabelError
from rlhf_core.feedback.ballots import BallotBox
from rlhf_core.stages.labels.push import push_labels
from tests.feedback.conftest import make_collection
from tests.feedback.servers import Chat, LabelStudio, prefers_longer, serving, shown

ROOT = Path(__file__).parents[2]
JUDGE = {"kind": "ai", "model": "tiny/judge", "principles": ["Say more."], "concurrency": 2}


def test_simulated_annotators_vote_at_once_and_the_same_again(collection, configured, tmp_path):
    labeler = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}
    result = push_labels(configured(labeler), "abc")
    assert (result.asked, result.before, result.waits) == (6, 0, False)
    ballots = BallotBox(collection, "simulated").read()
    assert [len(ballot.votes) for ballot in ballots] == [3] * 6
    again = push_labels(configured(labeler), str(collection))
    assert (again.asked, again.before) == (0, 6)
    assert BallotBox(collection, "simulated").read() == ballots
    other = make_collection(tmp_path / "other")
    push_labels(configured(labeler, output=str(other.parent)), "abc")
    assert BallotBox(other, "simulated").read() == ballots


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "expected module:function or file.py:function, found 'nowhere'"),
        ("nowhere:at_all", "nowhere:at_all cannot be loaded: .*No module named 'nowhere'"),
        ("rlhf_core.demo.annotators:ANNOTATORS", "is not a function"),
    ],
)
def test_annotators_that_are_not_there_are_named(collection, configured, name, says, monkeypatch):
    if ":" in name:
        monkeypatch.setenv("RLHF_ALLOWED_FUNCTIONS", name)
    with pytest.raises(ConfigError, match=f"feedback.labeler.annotators: .*{says}"):
        push_labels(configured({"kind": "simulated", "annotators": name}), "abc")


def test_a_collection_that_is_not_there_is_told_with_those_there_are(collection, configured):
    with pytest.raises(DataError, match=r"nope: no such collection in .*collected; known: abc"):
        push_labels(configured({"kind": "simulated", "annotators": "a:b"}), "nope")


def test_an_ai_judge_is_asked_about_every_pair_in_both_orders(collection, configured):
    chat = Chat(prefers_longer)
    with serving(chat) as url:
        result = push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    assert len(chat.asked) == 12
    assert (result.labeler, result.asked, result.order_dependent) == ("ai:tiny/judge", 6, 0.0)
    assert (result.without_vote, result.tokens) == (0, 120)
    votes = [ballot.votes[0] for ballot in BallotBox(collection, "ai:tiny/judge").read()]
    assert {(vote.annotator, vote.choice) for vote in votes} == {("ai:tiny/judge", "b")}


def test_the_share_of_verdicts_that_follow_the_order_is_told(collection, configured):
    def say(messages):
        number = int(shown(messages)[0].split()[0])
        if number == 1:
            return "I cannot decide."
        return "[[A]]" if number < 4 else prefers_longer(messages)

    with serving(Chat(say)) as url:
        result = push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    assert result.without_vote == 1
    assert result.order_dependent == pytest.approx(2 / 5)


def test_a_push_that_lost_the_judge_goes_on_with_what_is_missing(collection, configured):
    chat = Chat(prefers_longer)
    seen = []

    def failing(method, path, query, body, headers):
        seen.append(body)
        if len(seen) > 5:
            return 402, {"error": "out of credit"}
        return chat(method, path, query, body, headers)

    labeler = {**JUDGE, "concurrency": 1}
    with serving(failing) as url, pytest.raises(LabelError, match="out of credit"):
        push_labels(configured({**labeler, "url": f"{url}/v1"}), "abc")
    kept = BallotBox(collection, "ai:tiny/judge").read()
    assert len(kept) == 2
    with serving(chat) as url:
        result = push_labels(configured({**labeler, "url": f"{url}/v1"}), "abc")
    assert (result.before, result.asked) == (2, 4)
    assert BallotBox(collection, "ai:tiny/judge").read()[:2] == kept


def test_a_pair_that_is_too_long_for_the_judge_holds_up_no_other(collection, configured):
    chat = Chat(prefers_longer)

    def short_sighted(method, path, query, body, headers):
        if "Question 1?" in body["messages"][1]["content"]:
            return 400, {"error": {"message": "maximum context length is 4096 tokens"}}
        return chat(method, path, query, body, headers)

    with serving(short_sighted) as url:
        config = configured({**JUDGE, "url": f"{url}/v1"})
        result = push_labels(config, "abc")
        again = push_labels(config, "abc")
    assert (result.asked, result.without_vote, again.asked) == (6, 1, 0)
    (refused,) = (one for one in BallotBox(collection, "ai:tiny/judge").read() if not one.votes)
    assert refused.comparison_id == "abc-00001"
    assert "maximum context length" in refused.problem


@pytest.mark.parametrize("size", [6, 30])
def test_a_judge_that_refuses_every_pair_is_told_and_asked_again(tmp_path, configured, size):
    folder = make_collection(tmp_path / "collected", size)
    seen = []

    def refusing(*request):
        seen.append(request)
        return 400, {"error": "unknown parameter"}

    with serving(refusing) as url, pytest.raises(LabelError, match="answers 400: unknown param"):
        push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    assert len(seen) < 20
    assert not BallotBox(folder, "ai:tiny/judge").read()


def test_another_constitution_is_not_mixed_into_the_votes(collection, configured):
    with serving(Chat(prefers_longer)) as url:
        push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
        other = {**JUDGE, "url": f"{url}/v1", "principles": ["Say less."]}
        with pytest.raises(ConfigError, match=r"other settings \(changed: principles\)"):
            push_labels(configured(other), "abc")


def test_a_killed_push_asks_only_for_what_is_missing(collection, configured, tmp_path):
    chat, held = Chat(prefers_longer), threading.Event()

    def say(messages):
        if len(chat.asked) > 6:  # three pairs are done; the kill comes while the fourth is asked
            held.wait(60)
        return prefers_longer(messages)

    chat.say = say
    box = BallotBox(collection, "ai:tiny/judge")
    with serving(chat) as url:
        config = configured({**JUDGE, "url": f"{url}/v1", "concurrency": 1})
        code = "from rlhf_flows.commands.cli import main; main()"
        command = [sys.executable, "-c", code, "label", "push", "abc", "config.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        push = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(box.read()) < 3 and push.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        push.send_signal(signal.SIGKILL)
        _, said = push.communicate()
        assert len(box.read()) == 3, said.decode()
        held.set()
        with box.path.open("ab") as stream:
            stream.write(b'{"comparison_id":"abc-0')  # as a kill within a write leaves it
        before = {ballot.comparison_id for ballot in box.read()}
        chat.asked.clear()
        result = push_labels(config, "abc")
    assert (result.before, result.asked) == (3, 3)
    numbers = {int(shown(body["messages"])[0].split()[0]) for body in chat.asked}
    assert numbers.isdisjoint(int(name[-1]) for name in before)
    assert len({ballot.comparison_id for ballot in box.read()}) == 6


def test_people_get_a_project_with_a_task_for_each_pair(collection, configured):
    app = LabelStudio()
    with serving(app) as url:
        config = configured({"kind": "label_studio", "url": url}, votes_per_pair=3)
        result = push_labels(config, "abc")
        again = push_labels(config, "abc")
    assert (result.asked, result.waits, result.place) == (6, True, f"{url}/projects/1")
    assert (again.asked, again.before) == (0, 6)
    assert [task["data"]["comparison_id"] for task in app.tasks.values()] == [
        f"abc-0000{number}" for number in range(1, 7)
    ]
    (project,) = app.projects.values()
    assert (project["title"], project["maximum_annotations"]) == ("rlhf abc", 3)
    assert 'name="choice"' in project["label_config"]


@pytest.mark.parametrize("lost", ["project", "import", "state"])
def test_nothing_is_sent_twice_whatever_was_lost(collection, configured, monkeypatch, lost):
    monkeypatch.setattr("rlhf_core.stages.labels.label_studio._AT_ONCE", 2)
    app = LabelStudio()
    with serving(app) as url:
        config = configured({"kind": "label_studio", "url": url})
        if lost == "state":
            push_labels(config, "abc")
            (collection / "label_studio.json").unlink()
        else:
            # Looking for the project comes first, or that, making it and listing its tasks.
            fine = {"project": 1, "import": 3}[lost]
            app.trouble = [*("pass",) * fine, "lose the answer"]
            with pytest.raises(LabelError, match="repeat the command"):
                push_labels(config, "abc")
        push_labels(config, "abc")
    assert len(app.projects) == 1
    assert len(app.tasks) == 6


def test_tasks_can_be_added_to_a_project_of_ones_own(collection, configured):
    app = LabelStudio()
    app.make_project({"title": "ours", "label_config": "<View/>"})
    with serving(app) as url:
        labeler = {"kind": "label_studio", "url": url, "project": 1}
        assert push_labels(configured(labeler), "abc").place == f"{url}/projects/1"
        with pytest.raises(ConfigError, match=r"abc was sent to project 1 of .*; name that, or"):
            push_labels(configured({**labeler, "project": 2}), "abc")
        (collection / "label_studio.json").unlink()
        with pytest.raises(LabelError, match="404: No Project matches the given query"):
            push_labels(configured({**labeler, "project": 2}), "abc")
    assert len(app.projects) == 1


def test_a_project_that_was_deleted_on_the_server_is_told(collection, configured):
    app = LabelStudio()
    with serving(app) as url:
        config = configured({"kind": "label_studio", "url": url})
        push_labels(config, "abc")
        app.projects.clear()
        with pytest.raises(LabelError, match="404: No Project matches the given query"):
            push_labels(config, "abc")


@pytest.mark.parametrize(
    "name", ["manifest.json", "label_studio.json", "votes/simulated/asked.json"]
)
def test_a_broken_file_of_the_collection_is_named(collection, configured, name):
    labeler = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}
    if name.startswith("label"):
        labeler = {"kind": "label_studio", "url": "http://127.0.0.1:9"}
    (collection / name).parent.mkdir(parents=True, exist_ok=True)
    (collection / name).write_text('{"url":')
    with pytest.raises(DataError, match=rf"{name}: "):
        push_labels(configured(labeler), "abc")


def test_the_votes_file_says_what_was_asked(collection, configured):
    with serving(Chat(prefers_longer)) as url:
        push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    path = BallotBox(collection, "ai:tiny/judge").path.with_name("asked.json")
    asked = json.loads(path.read_text())
    assert asked["principles"] == ["Say more."]
    assert "[[TIE]]" in asked["instructions"]


REFUSALS = [
    (400, {"error": {"message": "Budget has been exceeded! Current cost: 10.1, Max budget: 10"}}),
    (422, {"error": {"message": "ExceededBudget: over budget", "type": "budget_exceeded"}}),
    (402, {"error": "Insufficient credits"}),
    (403, {"error": "Key not allowed to access model"}),
    (404, {"error": "no such model"}),
    (429, {"error": {"message": "You exceeded your current quota"}}),
    (503, {"error": "no backend"}),
    (400, {"error": {"message": "quota of the context window tier used up"}}),
    (200, {"error": {"message": "Provider returned error", "code": 502}}),
    (200, {"choices": []}),
    (200, {"choices": [{"error": {"message": "upstream"}, "message": {"content": ""}}]}),
    (200, {"detail": "maintenance"}),
    (200, "<html>sign in</html>"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: str(refusal)[:40])
def test_what_is_the_endpoints_fault_costs_no_pair(collection, configured, refusal):
    chat, seen = Chat(prefers_longer), []

    def failing(method, path, query, body, headers):
        seen.append(body)
        return refusal if len(seen) > 5 else chat(method, path, query, body, headers)

    labeler = {**JUDGE, "concurrency": 1, "patience_seconds": 0.05}
    box = BallotBox(collection, "ai:tiny/judge")
    with serving(failing) as url, pytest.raises(LabelError) as raised:
        push_labels(configured({**labeler, "url": f"{url}/v1"}), "abc")
    assert "\n" not in str(raised.value)
    assert [len(ballot.votes) for ballot in box.read()] == [1, 1]
    with serving(chat) as url:
        result = push_labels(configured({**labeler, "url": f"{url}/v1"}), "abc")
    assert (result.before, result.asked, result.without_vote) == (2, 4, 0)


def test_pairs_without_a_verdict_are_asked_again_where_that_is_wanted(collection, configured):
    chat = Chat(lambda messages: "I cannot decide.")
    with serving(chat) as url:
        config = configured({**JUDGE, "url": f"{url}/v1", "max_attempts": 1})
        assert push_labels(config, "abc").without_vote == 6
        assert push_labels(config, "abc").asked == 0
        chat.say = prefers_longer
        result = push_labels(config, "abc", again=True)
    assert (result.asked, result.without_vote) == (6, 0)
    assert len(BallotBox(collection, "ai:tiny/judge").read()) == 6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: [{"type": "text", "text": text}],
        lambda text: [{"type": "reasoning", "text": "hm\n[[TIE]]"}, {"type": "text", "text": text}],
        lambda text: [{"type": "output_text", "text": text[:5]}, text[5:]],
    ],
)
def test_content_may_be_a_list_of_parts(collection, configured, wrap):
    with serving(Chat(lambda messages: wrap(prefers_longer(messages)))) as url:
        result = push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    assert (result.without_vote, result.order_dependent) == (0, 0.0)


def test_a_judge_that_says_nothing_is_asked_again_without_an_empty_turn(collection, configured):
    chat = Chat(lambda messages: None if len(messages) == 2 else prefers_longer(messages))
    with serving(chat) as url:
        result = push_labels(configured({**JUDGE, "url": f"{url}/v1"}), "abc")
    assert result.without_vote == 0
    assert all(turn["content"] for body in chat.asked for turn in body["messages"])
