"""A model as a plain folder with a card, and pushed to a hub: a small one of this machine."""

import base64
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.adapters.hub import push_folder
from rlhf_core.adapters.registry.model_files import local_model
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.errors import DataError, RegistryError
from rlhf_core.models.files import weights_sha256
from rlhf_core.schema import ModelRef
from rlhf_core.stages.export import export_model

BASE = "data/base"


@pytest.fixture
def base(request):
    return request.config.rootpath / BASE


@pytest.fixture
def registered(mlflow_home, base):
    """A policy that passed its gates, made from an SFT model whose base names its licence."""
    client = mlflow_client()
    origin = mlflow_home / "origin"
    origin.mkdir()
    (origin / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    experiment = client.create_experiment("rlhf")
    run = client.create_run(experiment)
    for name, value in (("", 0.8), ("/low", 0.75), ("/high", 0.85)):
        client.log_metric(run.info.run_id, f"policy/win_rate{name}", value)
    made = {}
    for role, tags in (
        ("sft", {"rlhf.base": str(origin)}),
        (
            "policy",
            {
                "rlhf.upstream.sft": "models:/rlhf-sft/1",
                "rlhf.dataset_version": "data-v7",
                "rlhf.dataset_sha256": "d" * 64,
                "rlhf.verdict": "PROMOTE",
                "rlhf.verdict_run": run.info.run_id,
                "rlhf.gate.policy/win_rate": "PROMOTE: 0.80 [0.75, 0.85] | at least 0.55",
            },
        ),
    ):
        client.create_registered_model(f"rlhf-{role}")
        made[role] = client.create_model_version(
            f"rlhf-{role}", source=str(base), run_id=run.info.run_id, tags=tags
        )
    return ModelRef(
        name="rlhf-policy", version="1", uri="models:/rlhf-policy/1", path=base,
        sha256=weights_sha256(base), kind="causal", run_id=run.info.run_id,
    )  # fmt: skip


def test_the_folder_is_loaded_by_anybody_and_its_card_says_all(registered, tmp_path):
    folder = export_model(registered, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-generation")
    for said in (
        "| data version | data-v7 |",
        "Verdict: **PROMOTE**",
        "| policy/win_rate | PROMOTE: 0.80 [0.75, 0.85] \\| at least 0.55 |",
        "| policy/win_rate | 0.8 [0.75, 0.85] |",
        "## Limits",
        "`apache-2.0`, as the base model's own card says.",
    ):
        assert said in card.content


def test_a_base_that_names_no_licence_is_said(registered, tmp_path):
    mlflow_client().set_model_version_tag("rlhf-sft", "1", "rlhf.base", "someone/base")
    card = (export_model(registered, tmp_path / "out") / "README.md").read_text()
    assert "base_model: someone/base" in card
    assert "license: unknown" in card
    assert "`someone/base` names no licence where it was read" in card


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(base, tmp_path, monkeypatch):
    model, full = local_model(base), tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for taken in (full, full / "mine"):
        with pytest.raises(DataError, match="is there already; name a new or an empty folder"):
            export_model(model, taken)
    (tmp_path / "empty").mkdir()
    export_model(model, tmp_path / "empty")
    monkeypatch.setattr("rlhf_core.storage.folders._sync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(model, tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == ["empty", "full"]


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload asks for."""

    files: dict[str, bytes]
    created: list[dict]
    refused = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.refused:
            return self.say({"error": "no"}, self.refused)
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.say(
                {"url": f"http://{self.headers['host']}/team/policy", "name": "team/policy"}
            )
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            each = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            return self.say({"files": each})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            where = f"http://{self.headers['host']}/team/policy/commit/1"
            return self.say({"success": True, "commitOid": "1" * 40, "commitUrl": where})
        return self.say({}, 200)

    def do_GET(self):
        self.say({"id": "team/policy", "sha": "1" * 40, "siblings": []})

    do_HEAD = do_GET

    def say(self, what, status=200):
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    Own = type("Own", (Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "token")
    yield Own
    server.shutdown()
    server.server_close()


def test_a_folder_is_pushed_as_it_lies_there(hub, base, tmp_path):
    folder = export_model(local_model(base), tmp_path / "out")
    assert push_folder(folder, "team/policy", private=True).endswith("/team/policy")
    assert hub.created[0]["visibility"] == "private"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_hub_that_refuses_or_is_not_there_is_one_line(hub, base, monkeypatch):
    hub.refused = 403
    with pytest.raises(RegistryError, match=r"answers 403: .*; set HF_TOKEN to a token"):
        push_folder(base, "team/policy", private=True)
    with pytest.raises(RegistryError, match="expected owner/name"):
        push_folder(base, "a/b/c", private=True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RegistryError, match="cannot be reached"):
        push_folder(base, "team/policy", private=True)
