"""Against a real MLflow server over HTTP: proxied artifacts, and a server that goes away."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
import requests

from rlhf_core.adapters.registry.registry import register_model, resolve_model
from rlhf_core.adapters.tracking.mlflow_client import check_server, mlflow_client
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.errors import RegistryError
from tests.servers import MlflowServer

pytestmark = pytest.mark.slow


class DroppedAnswers:
    """A proxy in front of a server: the first answer to ``path`` never arrives."""

    def __init__(self, target, path):
        proxy = self
        self.num_asked = 0

        class Forward(BaseHTTPRequestHandler):
            def forward(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = requests.request(
                    self.command, target + self.path, data=body,
                    headers={"content-type": self.headers.get("content-type", "")},
                )  # fmt: skip
                if path in self.path:
                    proxy.num_asked += 1
                    if proxy.num_asked == 1:
                        self.close_connection = True
                        return  # done, but nobody hears of it
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = forward

            def log_message(self, *arguments):
                pass

        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
        self.uri = f"http://127.0.0.1:{self.listener.server_port}"
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def started(tmp_path_factory, fresh_database, forked):
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(fresh_database.read_bytes())
    server = MlflowServer(folder, forked)
    yield server
    server.stop()


@pytest.fixture
def server(started, tmp_path, monkeypatch):
    if started.process is None:
        started.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started.uri)
    monkeypatch.setenv("RLHF_TRACKING_PATIENCE", "300")
    monkeypatch.chdir(tmp_path)
    return started


@pytest.fixture
def config(config):
    """A project of the test's own on the server that all share."""
    return config.model_copy(update={"project": f"project-{uuid4().hex[:8]}"})


@pytest.fixture
def name(config):
    """The registered model of that project."""
    return f"{config.project}-sft"


def test_a_model_travels_over_http_and_is_downloaded_once(
    server, config, name, context, model_folder, tmp_path, monkeypatch
):
    check_server()
    folder, sha256 = model_folder(b"weights over http")
    with open_run(config, context, "sft", inputs={}) as run:
        model = register_model(
            run, directory=folder, name=name, kind="causal", sha256=sha256, tags={}
        )
    assert run.url.startswith(server.uri)
    cache = tmp_path / "cache"
    found = resolve_model(f"models:/{name}@candidate", cache=cache)
    assert found.sha256 == sha256
    assert found.path == cache / name / "1"
    assert (found.path / "model.safetensors").read_bytes() == b"weights over http"
    assert [path.name for path in (cache / name).iterdir()] == ["1"]

    def refuse(*args, **kwargs):
        raise AssertionError("downloaded again")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", refuse)
    assert resolve_model(model.uri, cache=cache) == found
    (found.path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RegistryError, match="the files were changed"):
        resolve_model(model.uri, cache=cache)


def test_training_goes_on_while_the_server_is_away_and_nothing_is_lost(
    server, config, name, context, model_folder
):
    folder, sha256 = model_folder()
    with open_run(config, context, "sft", inputs={}) as run:
        run.log_metrics({"sft/loss": 0.0}, step=0)
        run.flush()
        server.stop()
        slowest = 0.0
        for step in range(1, 8):
            time.sleep(0.5)
            started = time.monotonic()
            run.log_metrics({"sft/loss": float(step)}, step)
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 20.0
        restart = threading.Timer(3.0, server.start)
        restart.start()
        model = register_model(
            run, directory=folder, name=name, kind="causal", sha256=sha256, tags={}
        )
        restart.join()
    client = mlflow_client()
    steps = [point.step for point in client.get_metric_history(run.run_id, "sft/loss")]
    assert steps == list(range(8))
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [str(v.version) for v in client.search_model_versions(f"name='{name}'")] == ["1"]
    assert model.version == "1"


@pytest.mark.parametrize("path", ["model-versions/create", "runs/create"])
def test_an_answer_that_gets_lost_makes_nothing_twice(
    server, config, name, context, model_folder, monkeypatch, path
):
    proxy = DroppedAnswers(server.uri, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    folder, sha256 = model_folder()
    with open_run(config, context, "sft", inputs={}) as run:
        register_model(run, directory=folder, name=name, kind="causal", sha256=sha256, tags={})
    proxy.listener.shutdown()
    assert proxy.num_asked == 1, "it was found, and not asked for again"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    client = mlflow_client()
    assert [str(v.version) for v in client.search_model_versions(f"name='{name}'")] == ["1"]
    assert len(client.search_runs([run.experiment_id])) == 1


def test_a_stage_waits_for_a_server_that_is_just_restarting(server, config, context):
    server.stop()
    restart = threading.Timer(2.0, server.start)
    restart.start()
    with open_run(config, context, "sft", inputs={}) as run:
        assert run.run_id
    restart.join()
