"""A registered model is an MLflow model: MLflow's own functions load it and its server answers."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.settings import child_environment
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.models import load_causal, load_scalar, save_model
from rlhf_core.models.scalar import scalar_from_causal, sequence_scores
from rlhf_core.tokenization import load_tokenizer, make_renderer, pack_prompts

BASE = "data/base"
QUESTION = [{"role": "user", "content": "When does the castle open?"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, request):
    """A policy and a reward model with the demo's base weights, in folders."""
    base = request.config.rootpath / BASE
    folder, tokenizer = tmp_path_factory.mktemp("saved"), load_tokenizer(base)
    made = {"policy": load_causal(base), "reward": scalar_from_causal(base, seed=1)}
    made["reward"].config.reward_shift = 0.5
    return {
        role: (folder / role, save_model(model, tokenizer, folder / role))
        for role, model in made.items()
    }


@pytest.fixture
def registered(mlflow_home, config, context, saved):
    """Register one of them, and let MLflow's functions find the registry."""

    def register(role):
        folder, sha256 = saved[role]
        kind = "scalar" if role == "reward" else "causal"
        with open_run(config, context, role, inputs={}) as run:
            return register_model(
                run, directory=folder, name=f"rlhf-{role}", kind=kind, sha256=sha256, tags={}
            )

    mlflow.set_tracking_uri(f"sqlite:///{mlflow_home}/mlflow.db")
    yield register
    mlflow.set_tracking_uri(None)


def stored(name):
    """Folder of a registered model's files."""
    return Path(urlparse(mlflow_client().get_model_version_download_uri(name, "1")).path)


def text(completion):
    return completion["choices"][0]["message"]["content"]


def test_pyfunc_answers_every_row_as_it_asks(registered):
    registered("policy")
    model = mlflow.pyfunc.load_model("models:/rlhf-policy@candidate")
    (alone,) = model.predict({"messages": QUESTION, "temperature": 0.0})
    assert (alone["object"], alone["model"]) == ("chat.completion", "rlhf-policy")
    assert text(alone).startswith("The castle")
    rows = pd.DataFrame(
        [
            {"messages": QUESTION, "temperature": 0.0, "max_tokens": 2},
            {"messages": QUESTION, "seed": 3},
            {"messages": QUESTION, "temperature": 0.0},
        ]
    )
    cut, drawn, whole = model.predict(rows)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 2
    assert text(whole) == text(alone)
    assert text(model.predict({"messages": QUESTION}, params={"seed": 3})[0]) == text(drawn)
    (stopped,) = model.predict({"messages": QUESTION, "temperature": 0.0, "stop": "opens"})
    assert (text(stopped), stopped["choices"][0]["finish_reason"]) == ("The castle ", "stop")
    for wrong in ({"temperature": 9.0}, {"top_p": 0.0}, {"n": 0}, {"max_tokens": -1}, {"seed": -1}):
        with pytest.raises(MlflowException, match=f"{next(iter(wrong))}: .* expected"):
            model.predict({"messages": QUESTION, **wrong})


def test_mlmodel_says_what_a_server_needs(registered, saved):
    registered("policy")
    said = Model.load(str(stored("rlhf-policy")))
    folder, _ = saved["policy"]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert said.metadata["end_token_ids"] == (ends if isinstance(ends, list) else [ends])
    assert said.metadata["chat_template"] == (folder / "chat_template.jinja").read_text()
    assert said.metadata["precision"] == "float32"
    assert said.signature.inputs.input_names()[0] == "messages"
    assert "choices" in said.signature.outputs.input_names()
    assert said.load_input_example(str(stored("rlhf-policy")))["messages"]
    assert said.model_size_bytes == (folder / "model.safetensors").stat().st_size


def test_transformers_loads_it_in_its_precision_and_with_its_ends(registered, saved):
    registered("policy")
    pipeline = mlflow.transformers.load_model("models:/rlhf-policy@candidate")
    (answer,) = pipeline(QUESTION, max_new_tokens=20, do_sample=False)
    (ours,) = mlflow.pyfunc.load_model("models:/rlhf-policy/1").predict(
        {"messages": QUESTION, "temperature": 0.0}
    )
    assert answer["generated_text"][-1]["content"] == text(ours)
    own = load_causal(saved["policy"][0])
    assert pipeline.model.dtype == own.dtype
    assert pipeline.model.generation_config.eos_token_id == own.generation_config.eos_token_id


def test_a_reward_model_gives_its_raw_score(registered, saved):
    registered("reward")
    rows = [{"messages": [*QUESTION, {"role": "assistant", "content": "At nine."}]}]
    scores = mlflow.pyfunc.load_model("models:/rlhf-reward/1").predict(pd.DataFrame(rows * 2))
    model, renderer = (
        load_scalar(saved["reward"][0]),
        make_renderer(load_tokenizer(saved["reward"][0])),
    )
    whole = renderer.tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    batch = pack_prompts([renderer.encode(whole.rstrip("\n"))])
    expected = float(sequence_scores(model, batch)[0].detach())
    assert scores["score"].tolist() == pytest.approx([expected] * 2, abs=1e-6)
    with pytest.raises(MlflowException, match="expected one of the assistant"):
        mlflow.pyfunc.load_model("models:/rlhf-reward/1").predict({"messages": QUESTION})


def test_mlflow_serves_it(registered):
    registered("policy")
    app = scoring_server.init(mlflow.pyfunc.load_model("models:/rlhf-policy@candidate"))
    with TestClient(app) as client:
        ask = {"messages": QUESTION, "temperature": 0, "max_tokens": 20}
        answer = client.post("/invocations", json=ask)
        assert answer.status_code == 200, answer.text
        assert text(answer.json()[0]).startswith("The castle")
        refused = client.post("/invocations", json={**ask, "temperature": 9})
        assert refused.status_code == 400
        assert "temperature: 9.0 is not possible" in refused.json()["message"]
        assert "Traceback" not in refused.text


def test_weights_are_there_once_and_readable_as_their_folder_is(registered, saved):
    registered("policy")
    for file in saved["policy"][0].glob("*"):
        assert os.path.samefile(file, stored("rlhf-policy") / file.name)
    weights = stored("rlhf-policy") / "model.safetensors"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(weights.stat().st_mode) == 0o666 & ~umask


def test_a_disk_without_links_gets_copies_and_that_is_said(registered, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level("INFO"):
        model = registered("policy")
    assert "model_copied model=rlhf-policy" in caplog.text
    assert (stored("rlhf-policy") / "model.safetensors").stat().st_nlink == 1
    assert resolve_model(model.uri, cache=Path("cache")).sha256 == model.sha256


def test_a_model_that_an_earlier_build_registered_is_found_as_ever(registered):
    model = registered("policy")
    folder = stored("rlhf-policy")
    for name in ("MLmodel", "conda.yaml", "requirements.txt", "input_example.json"):
        (folder / name).unlink()
    assert resolve_model("models:/rlhf-policy@candidate", cache=Path("cache")).path == folder
    assert load_causal(folder).config.architectures
    assert model.sha256


def test_models_of_every_build_name_the_same_module_to_load_them(registered):
    """MLflow imports it by the name that lies in the registry: moved, it would lose all of them."""
    registered("policy")
    described = Model.load(str(stored("rlhf-policy")))
    assert (
        described.flavors["python_function"]["loader_module"] == "rlhf_core.adapters.pyfunc_model"
    )


@pytest.mark.slow
def test_mlflow_models_serve_answers(registered, mlflow_home):
    registered("policy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["models", "serve", "-m", "models:/rlhf-policy@candidate", "--env-manager", "local"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--port", str(port)],
        env={**child_environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_home}/mlflow.db"},
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/ping").is_success:
                    break
            time.sleep(0.2)
        assert server.poll() is None
        ask = {"messages": QUESTION, "temperature": 0}
        answer = httpx.post(f"{url}/invocations", json=ask, timeout=60)
        assert text(answer.json()[0]) == "The castle opens at 11 am."
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
