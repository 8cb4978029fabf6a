import os
import socket
import ssl
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from prefect.settings import (
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from rlhf_core.errors import OrchestrationError
from rlhf_flows.engine.prefect_server import check_prefect
from rlhf_flows.engine.zombies import mark_zombie_runs
from rlhf_flows.servers import deploy

ROOT = Path(__file__).parents[2]
LOGIN = f"Basic {b64encode(b'team:SECRET').decode()}"


class Answer(BaseHTTPRequestHandler):
    """Says to everything the status that its server was given, and lets in whom it knows."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/api/csrf-token"):
            self.send_error(404, "no token is needed")
            return
        self.server.asked.append(self.path)
        self.server.headers = self.headers
        admitted = self.headers["authorization"] in (LOGIN, "Bearer KEY")
        self.send_response(self.server.status if admitted else 401)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(monkeypatch):
    """Address of a server that is configured and does not run."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:SECRET")
    return "127.0.0.1", port


@pytest.fixture
def serve(address):
    """Start the server at that address; it answers with the status."""
    servers = []

    def start(status):
        server = ThreadingHTTPServer(address, Answer)
        server.status, server.asked = status, []
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_without_a_configured_server_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    check_prefect()


def test_an_unreachable_server_is_named_with_what_to_do(address):
    with pytest.raises(OrchestrationError) as refusal:
        check_prefect(0.0)
    message = str(refusal.value)
    assert f"Prefect at http://127.0.0.1:{address[1]}/api cannot be reached" in message
    assert "rlhf up" in message
    assert "unset it" in message


def test_a_password_in_the_address_is_not_shown(address, monkeypatch, caplog):
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:SECRET@127.0.0.1:{address[1]}/api")
    with pytest.raises(OrchestrationError) as refusal:
        check_prefect(1.0)
    assert "SECRET" not in str(refusal.value) + caplog.text


@pytest.mark.parametrize("status", [404, 500])
def test_an_address_where_prefect_is_not_is_refused(serve, status):
    serve(status)
    with pytest.raises(OrchestrationError, match=f"answers {status} to /api/work_pools/filter"):
        check_prefect(0.0)


@pytest.mark.parametrize("login", ["", "team:WRONG"])
def test_a_server_that_does_not_let_us_in_is_refused_before_prefect_asks(serve, monkeypatch, login):
    """Prefect's own refusal is a traceback and exit status 1, which means that a gate said no."""
    serve(200)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", login)
    with pytest.raises(OrchestrationError, match="set PREFECT_API_AUTH_STRING") as refusal:
        check_prefect(0.0)
    assert "WRONG" not in str(refusal.value)


def test_a_refusal_names_who_was_refused_and_is_not_asked_again(serve):
    server = serve(401)
    with pytest.raises(OrchestrationError, match="does not let user 'team' in \\(401\\)"):
        check_prefect(60.0)
    assert len(server.asked) == 1


def test_with_the_password_commands_and_the_sweep_are_let_in(serve):
    server = serve(200)
    check_prefect(0.0)
    assert mark_zombie_runs(os.environ["PREFECT_API_URL"]) == []
    assert server.asked[-1] == "/api/flow_runs/filter"


def test_a_key_or_a_header_for_the_proxy_is_shown_too(serve, monkeypatch):
    server = serve(200)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    monkeypatch.setenv("PREFECT_API_KEY", "KEY")
    with temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Team": "rlhf"}}):
        check_prefect(0.0)
    assert server.headers["x-team"] == "rlhf"
    assert server.headers["authorization"] == "Bearer KEY"


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def served_with_certificate(address, serve, authority):
    """The server at that address, by https, with a certificate of a private authority."""
    server = serve(200)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    os.environ["PREFECT_API_URL"] = os.environ["PREFECT_API_URL"].replace("http:", "https:")
    return server


def test_a_private_authority_is_known_by_the_variable_of_prefects_own_client(
    served_with_certificate, authority, tmp_path, monkeypatch
):
    with pytest.raises(OrchestrationError, match="set PREFECT_API_SSL_CERT_FILE"):
        check_prefect(60.0)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    check_prefect(0.0)
    assert served_with_certificate.asked == ["/api/work_pools/filter"]


def test_prefects_own_switch_for_tests_is_honoured(served_with_certificate):
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
        check_prefect(0.0)


def test_a_server_that_is_just_starting_is_waited_for(serve):
    later = threading.Timer(1.0, serve, [200])
    later.start()
    started = time.monotonic()
    check_prefect(60.0)
    assert time.monotonic() - started >= 1.0
    later.join()


def test_deploy_waits_for_the_server_before_it_makes_anything(monkeypatch):
    class AskedError(Exception):
        pass

    def ask(wait_seconds):
        raise AskedError(wait_seconds)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(deploy, "check_prefect", ask)
    with pytest.raises(AskedError, match="60"):
        deploy.deploy(pool_type="process", watch_heartbeats=False)
