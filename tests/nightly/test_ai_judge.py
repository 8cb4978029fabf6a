"""The whole command line with an AI judge, through the proxy that teams put before their models."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
import yaml

from rlhf_core.demo.gold import rate
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import Message, StageResult
from rlhf_core.storage.records import read_record, read_records
from tests.feedback.servers import serving
from tests.flows.tiny import CONFIG, ROOT, SETTINGS, make_tiny
from tests.servers import free_port
from tests.team import answers, running

LITELLM = "litellm[proxy]==1.108.7"
KEY = "sk-of-the-test"
BIAS = 0.1
"""Share of the questions to which the judge says A, whatever stands there."""

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("ai_judge")]


@pytest.fixture(scope="module")
def litellm(tmp_path_factory):
    """The proxy's program, in an environment of its own."""
    folder = tmp_path_factory.mktemp("litellm")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "--quiet", LITELLM]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{LITELLM} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "bin" / "litellm"


def verdict(conversation, first, second):
    """What the judge says about two answers: the better one by the gold rater, with its bias."""
    asked = json.dumps([conversation, first, second]).encode()
    if int(hashlib.sha256(asked).hexdigest(), 16) % 1_000 < 1_000 * BIAS:
        return "A"
    turns = re.split(r"(?:^|\n\n)(user|assistant): ", conversation)[1:]
    prompt = [Message(role=r, content=c) for r, c in zip(turns[::2], turns[1::2], strict=True)]
    scores = [rate(prompt, answer)["score"] for answer in (first, second)]
    return "TIE" if scores[0] == scores[1] else "A" if scores[0] > scores[1] else "B"


def both_orders(conversation, first, second):
    """1 where the first answer is preferred in both orders, 0 the second, 0.5 neither; changed."""
    if first == second:
        return 0.5, None
    there, back = verdict(conversation, first, second), verdict(conversation, second, first)
    back = {"A": "B", "B": "A", "TIE": "TIE"}[back]
    return {"A": 1.0, "B": 0.0, "TIE": 0.5}[there] if there == back else 0.5, there != back


def said(content, finish="stop", **more):
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    about = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    return 200, {**about, "choices": [choice], "usage": usage}


SLOW = {"error": {"message": "slowly", "type": "rate_limit_error"}}
FORMS = (
    lambda text: said(text),
    lambda text: said(text, reasoning_content="[[A]] or [[B]]?"),
    lambda text: said(f"<think>\n[[A]] or\n[[B]]?\n</think>\n\n{text}"),
    lambda text: said(f"{text}\n\n"),
    lambda text: said(text.replace("[[", "**[[").replace("]]", "]]**")),
    # What follows is no verdict: the same question, or one more, is asked.
    lambda text: said(None, reasoning_content="[[A]] or [[B]]?"),
    lambda text: said(None, "length", reasoning_content="[[A]] or"),
    lambda text: said("Both say when the mill op", "length"),
    lambda text: said(f"{text}\nThat is all."),
    lambda text: (429, SLOW, {"Retry-After": "0.2"}),
    lambda text: (429, SLOW, {"Retry-After": formatdate(time.time() + 1, usegmt=True)}),
    lambda text: (429, SLOW, {"retry-after-ms": "150"}),
    lambda text: (429, SLOW, {"x-ratelimit-reset-requests": "100ms"}),
    lambda text: (503, {"error": {"message": "starting"}}),
    lambda text: (200, {"error": {"message": "overloaded", "code": 503}}),
)
"""What endpoints answer a question first, of that which a proxy passes on."""


class Rater:
    """Says what ``verdict`` says, in every form; its template knows no system role."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked = {}
        self.system_turns = 0

    def __call__(self, method, path, query, body, headers):
        if method == "GET":
            return 404, {}  # the proxy looks for what it may know of a server
        turns = body["messages"]
        if turns[0]["role"] == "system":
            self.system_turns += 1
            return 400, {"error": {"message": "System role not supported", "code": 400}}
        assert all(turn["content"] for turn in turns)
        parts = re.search(
            r"<conversation (.+?)>\n(.*)\n</conversation \1>\n\n<response A \1>\n(.*)\n"
            r"</response A \1>\n\n<response B \1>\n(.*)\n</response B \1>",
            turns[0]["content"],
            re.DOTALL,
        )
        question = parts.groups()[1:]
        with self.lock:
            again = question in self.asked
            self.asked[question] = form = self.asked.get(question, len(self.asked) % len(FORMS))
        text = f"It is right.\n[[{verdict(*question)}]]"
        return said(text) if again else FORMS[form](text)


@pytest.fixture
def proxy(litellm, tmp_path):
    """A rater behind the proxy: the proxy's address and the rater."""
    rater = Rater()
    with serving(rater) as url:
        asked = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
        settings = {
            "model_list": [{"model_name": "judge", "litellm_params": asked}],
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "general_settings": {"master_key": KEY},
        }
        (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(settings))
        port = free_port()
        command = [litellm, "--config", "proxy.yaml", "--host", "127.0.0.1", "--port", str(port)]
        address = f"http://127.0.0.1:{port}"
        alive = answers(f"{address}/health/liveliness")
        with running(command, tmp_path, "litellm", alive, HTTP_PROXY="", NO_PROXY="127.0.0.1"):
            yield f"{address}/v1", rater


@pytest.fixture
def project(tmp_path, proxy, forked):
    """A folder whose judge is the rater; what is typed there."""
    folder = tmp_path / "project"
    seat = {"kind": "ai", "url": proxy[0], "model": "judge", "principles": ["It is right."]}
    people = {"kind": "simulated", "annotators": "rlhf_core.demo.annotators:collect_votes"}
    make_tiny(
        folder,
        policy=SETTINGS["policy"]
        | {
            "critic_warmup_iterations": 0,
            "max_new_tokens": 32,
            "optimizer": {"learning_rate": 1e-3},
        },
        evaluation=SETTINGS["evaluation"]
        | {"judge": seat, "num_judge_pairs": 60, "max_new_tokens": 32},
        gates=SETTINGS["gates"]
        | {"judge": [{"metric": "judge/heldout_accuracy", "at_least": 0.2, "min_samples": 10}]},
        feedback={"num_prompts": 12, "votes_per_pair": 1, "labeler": people},
    )
    # One that speaks: answers of random weights are all rated alike.
    shutil.copytree(ROOT / "data/base", folder / "data/base", dirs_exist_ok=True)
    lines = (ROOT / "data/raw/comparisons.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/raw/comparisons.jsonl").write_text("".join(lines[:900]))

    def typed(*words, key=KEY):
        env = {**os.environ, "RLHF_JUDGE_API_KEY": key, "MLFLOW_TRACKING_URI": ""}
        return forked.run("rlhf", *words, cwd=folder, env=env)

    typed.folder, typed.seat, typed.rater = folder, seat, proxy[1]
    return typed


def test_a_judge_behind_a_proxy_chooses_the_checkpoint_decides_and_labels(project):
    done = project("run", CONFIG, "--run-id", "one")
    assert done.returncode in (0, 1), done.stderr
    run = project.folder / "runs" / "one"
    choice = read_record(run / "policy" / "result.json", StageResult).report.choice
    assert choice.judge == "ai:judge"
    result = read_record(run / "evaluate" / "result.json", StageResult)
    report = result.report
    assert report.judge == "ai:judge"
    assert report.metrics["policy/judge_unjudged"].value == 0.0
    outcomes = []
    for row in read_records(run / "evaluate" / "samples.jsonl", ComparedAnswer):
        conversation = "\n\n".join(f"{turn.role}: {turn.content}" for turn in row.prompt)
        won, changed = both_orders(conversation, row.policy, row.sft)
        assert row.won == won, row.prompt_id
        outcomes.append(changed)
    known = [changed for changed in outcomes if changed is not None]
    changed = report.metrics["policy/judge_order_dependence"]
    assert changed.value == pytest.approx(sum(known) / len(known))
    assert report.metrics["policy/judge_position_bias"].value == pytest.approx(changed.value)
    # Against people: it errs where the gold rater and they differ, and where it says A.
    assert report.judge_accuracy.num_samples > 30
    assert report.judge_accuracy.value > 0.6
    asked = dict(project.rater.asked)
    assert set(asked.values()) == set(range(len(FORMS)))

    # Again: every vote is on disk, and nothing is asked twice.
    again = ("evaluate", CONFIG, "--run-id", "one", "--force")
    assert project(*again).returncode in (0, 1)
    assert project.rater.asked == asked

    # A wrong key, none of the proxy's own: one line with what it says and what to do; no verdict.
    other = json.dumps({**project.seat, "principles": ["Say less."]})
    new = ("evaluate", CONFIG, "--run-id", "two", "--new-run", "--set", f"evaluation.judge={other}")
    done = project(*new, key="sk-other")
    assert done.returncode == 2
    assert "check the key in RLHF_JUDGE_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_votes_on_collected_answers_are_measured_against_peoples(project):
    done = project("run", CONFIG, "--run-id", "one", "--set", "evaluation.judge=run")
    assert done.returncode in (0, 1), done.stderr
    model = "models:/rlhf-policy@candidate"
    done = project("collect", CONFIG, "--model", model, "--json", "collected.json")
    assert done.returncode == 0, done.stderr
    name = json.loads((project.folder / "collected.json").read_text())["collection"][
        "collection_id"
    ]
    assert project("label", "push", name, CONFIG).returncode == 0
    by_judge = ("--set", f"feedback.labeler={json.dumps(project.seat)}")
    done = project("label", "push", name, CONFIG, *by_judge, "--json", "pushed.json")
    assert done.returncode == 0, done.stderr
    pushed = json.loads((project.folder / "pushed.json").read_text())
    assert pushed["without_vote"] == 0
    assert pushed["tokens"] > 0
    done = project(
        "label", "pull", name, CONFIG, "--output", "votes.jsonl", "--json", "pulled.json"
    )
    assert done.returncode == 0, done.stderr
    pulled = json.loads((project.folder / "pulled.json").read_text())
    assert pulled["judges"]["ai:judge"]["num_samples"] == pushed["asked"]
