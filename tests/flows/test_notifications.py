"""Who is told of decisions, by Prefect's own blocks; that its server tells is in test_served."""

import json
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_core.errors import ConfigError, OrchestrationError
from rlhf_flows.servers import notifications

SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, json.loads(text)))
        self.send_response(404 if "gone" in self.path else 200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as one message needs."""

    def handle(self):
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            command = line[:4].upper()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.heard.append(b"".join(lines).decode())
            self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 fine\r\n")


@contextmanager
def listening(kind, handler):
    """A receiver on a free port of this machine; what it heard is its ``heard``."""
    with kind(("127.0.0.1", 0), handler) as server:
        server.heard = []
        server.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def send(address):
    notifications._try(notifications._block(address, "team"), address)


def test_a_web_address_gets_subject_and_body_and_stands_in_no_log(caplog):
    with listening(ThreadingHTTPServer, Receiver) as server:
        send(f"http://127.0.0.1:{server.port}/hook?key=1")
    said = {"subject": "rlhf: notifications", "body": notifications.TRIAL}
    assert server.heard == [("/hook?key=1", said)]
    warned = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert warned == []


def test_slack_gets_its_own_form(monkeypatch):
    from apprise.plugins.slack import NotifySlack

    with listening(ThreadingHTTPServer, Receiver) as server:
        monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{server.port}/services")
        send(SLACK)
    ((path, said),) = server.heard
    assert path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert notifications.TRIAL in json.dumps(said)


def test_mail_is_sent():
    with listening(socketserver.ThreadingTCPServer, Mail) as server:
        send(f"mailto://127.0.0.1:{server.port}?from=rlhf@example.org&to=team@example.org")
    (message,) = server.heard
    assert "To: team@example.org" in message
    assert "Subject: rlhf: notifications" in message


@pytest.mark.parametrize("address", ["nonsense", "ftp://secret@host/x", "https://"])
def test_an_address_that_nothing_can_be_sent_to_is_refused_with_examples(address, caplog):
    with pytest.raises(ConfigError, match="nothing can be sent there; give https://hooks") as found:
        notifications._block(address, "team")
    assert "secret" not in str(found.value) + caplog.text


def test_a_trial_that_is_not_taken_is_one_line_without_the_secret():
    with (
        listening(ThreadingHTTPServer, Receiver) as server,
        pytest.raises(OrchestrationError, match="not taken \\(status 404\\)") as found,
    ):
        send(f"http://127.0.0.1:{server.port}/gone/secret")
    assert "secret" not in str(found.value)
