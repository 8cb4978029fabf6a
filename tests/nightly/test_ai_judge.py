"""The whole command line with an AI judge, through the proxy that teams put before their models."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import StageResult
from rlhf_core.storage.records import read_record, read_records
from tests.feedback.servers import Chat, prefers_longer, serving
from tests.flows.tiny import CONFIG, SETTINGS, make_tiny
from tests.team import answers, free_port, running

LITELLM = "litellm[proxy]==1.108.7"
KEY = "sk-of-the-test"

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


@pytest.fixture
def proxy(litellm, tmp_path):
    """A chat that prefers the longer answer, behind the proxy; the address and the chat."""
    chat = Chat(prefers_longer)
    with serving(chat) as url:
        settings = {
            "model_list": [
                {
                    "model_name": "judge",
                    "litellm_params": {
                        "model": "openai/m", "api_base": f"{url}/v1", "api_key": "none",
                    },
                }
            ],
            "general_settings": {"master_key": KEY},
        }  # fmt: skip
        (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(settings))
        port = free_port()
        command = [litellm, "--config", "proxy.yaml", "--host", "127.0.0.1", "--port", str(port)]
        address = f"http://127.0.0.1:{port}"
        alive = answers(f"{address}/health/liveliness")
        with running(command, tmp_path, "litellm", alive, HTTP_PROXY="", NO_PROXY="127.0.0.1"):
            yield f"{address}/v1", chat


def test_a_judge_behind_a_proxy_chooses_the_checkpoint_and_decides(proxy, forked, tmp_path):
    url, chat = proxy
    folder = tmp_path / "project"
    seat = {"kind": "ai", "url": url, "model": "judge", "principles": ["Say more."]}
    evaluation = SETTINGS["evaluation"] | {"judge": seat, "num_judge_pairs": 6}
    # What the stub likes people need not like: its accuracy on their votes is not what is asked.
    gates = SETTINGS["gates"] | {
        "judge": [{"metric": "judge/heldout_accuracy", "at_least": 1e-9, "min_samples": 1}]
    }
    make_tiny(folder, evaluation=evaluation, gates=gates)
    env = {**os.environ, "RLHF_JUDGE_API_KEY": KEY, "MLFLOW_TRACKING_URI": ""}
    done = forked.run("rlhf", "run", CONFIG, "--run-id", "one", cwd=folder, env=env)
    assert done.returncode in (0, 1), done.stderr
    run = folder / "runs" / "one"
    choice = read_record(run / "policy" / "result.json", StageResult).report.choice
    assert choice.judge == "ai:judge"
    report = read_record(run / "evaluate" / "result.json", StageResult).report
    assert report.judge == "ai:judge"
    assert report.metrics["policy/judge_unjudged"].value == 0.0
    assert report.metrics["policy/judge_order_dependence"].value == 0.0
    for row in read_records(run / "evaluate" / "samples.jsonl", ComparedAnswer):
        gap = len(row.policy) - len(row.sft)
        assert row.won == (0.5 if gap == 0 else float(gap > 0))
    asked = len(chat.asked)
    assert asked > 0

    # Again: every vote is on disk, and nothing is asked twice.
    again = ("rlhf", "evaluate", CONFIG, "--run-id", "one", "--force")
    done = forked.run(*again, cwd=folder, env=env)
    assert done.returncode in (0, 1), done.stderr
    assert len(chat.asked) == asked

    # A wrong key: one line with what the proxy says, and no verdict. litellm 1.108 without a
    # database answers 400 ("No connected db") and not 401.
    wrong = {**env, "RLHF_JUDGE_API_KEY": "sk-other"}
    changed = json.dumps({**seat, "principles": ["Say less."]})
    done = forked.run(*again, "--set", f"evaluation.judge={changed}", cwd=folder, env=wrong)
    assert done.returncode == 2
    assert "chat/completions answers 4" in done.stderr
    assert "Traceback" not in done.stderr
