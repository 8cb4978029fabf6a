"""Prefect's server answers its own names and pages, and nobody's else; clients and UI go on."""

import asyncio
import os
import socket

import httpx
import pytest
import requests
from prefect.settings import PREFECT_API_URL
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rlhf_core.errors import ConfigError
from rlhf_flows.engine.prefect_server import ask
from rlhf_flows.servers import own_pages
from rlhf_flows.servers.own_pages import OwnPages

SELF = "127.0.0.1:4200"
FOREIGN_PAGES = ("https://stranger.example", "http://localhost:8888", "null", "http://127.0.0.1")
FOREIGN_HOSTS = ("stranger.example", "stranger.example:4200", "127.0.0.1.stranger.example", "")


async def _open(scope, receive, send):
    """What Prefect answers: everything, to every page."""
    headers = [(b"access-control-allow-origin", b"*"), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"open"})


def answer(headers, hosts=("127.0.0.1", "prefect.example.org"), pages=(), method="GET"):
    async def send():
        transport = httpx.ASGITransport(app=OwnPages(_open, hosts, pages))
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, f"http://{SELF}/api/flows", headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "127.0.0.1:9999", "PREFECT.example.org"])
def test_a_name_of_the_server_is_answered(host):
    found = answer({"Host": host})
    assert found.status_code == 200
    assert "access-control-allow-origin" not in found.headers
    assert found.headers["x-frame-options"] == "SAMEORIGIN"
    assert found.headers["x-own"] == "1"


@pytest.mark.parametrize(
    "host", [*FOREIGN_HOSTS, "a@127.0.0.1", "127.0.0.1:4200/", "127.0.0.1:x", "127.0.0.1 x"]
)
def test_a_foreign_name_is_refused(host):
    found = answer({"Host": host})
    assert found.status_code == 403
    assert "RLHF_PREFECT_HOSTS" in found.json()["detail"]


def test_a_name_with_a_port_stands_for_that_port():
    assert answer({"Host": "one:4200"}, hosts=["one:4200"]).status_code == 200
    assert answer({"Host": "one:4201"}, hosts=["one:4200"]).status_code == 403


def test_two_names_at_once_are_refused():
    assert answer([("Host", SELF), ("Host", SELF)]).status_code == 403


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST", "DELETE"])
@pytest.mark.parametrize("page", FOREIGN_PAGES)
def test_a_foreign_page_is_refused(method, page):
    found = answer({"Host": SELF, "Origin": page}, method=method)
    assert found.status_code == 403
    assert "access-control-allow-origin" not in found.headers


def test_what_a_foreign_page_embeds_is_refused_and_a_link_is_followed():
    embedded = {"Host": SELF, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert answer(embedded).status_code == 403
    assert answer({**embedded, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert answer({**embedded, "Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("page", [f"http://{SELF}", "https://prefect.example.org"])
def test_own_pages_and_listed_ones_may_ask(page):
    listed = ["https://prefect.example.org"]
    assert answer({"Host": SELF, "Origin": page}, pages=listed).status_code == 200


@pytest.fixture
def unset(monkeypatch):
    """No variable of the machine, and none left behind."""
    for name in (*own_pages.CSRF, *own_pages.PAGES, *own_pages.ADDRESSES, own_pages.HOSTS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_server_knows_its_names_from_the_addresses_of_the_environment(unset):
    unset.setenv("PREFECT_API_URL", "http://a:b@prefect.rlhf.svc:4200/api")
    unset.setenv("PREFECT_UI_API_URL", "https://Prefect.example.org/api")
    unset.setenv("RLHF_PREFECT_HOSTS", "other, third:4200")
    settings, closed = own_pages.close_prefect(4200)
    guard = closed(_open)
    assert guard.hosts == {
        *("127.0.0.1", "localhost", "[::1]"),
        *("prefect.rlhf.svc:4200", "prefect.example.org", "other", "third:4200"),
    }
    assert guard.origins == {
        *("http://127.0.0.1:4200", "http://localhost:4200", "http://[::1]:4200"),
        *("http://prefect.rlhf.svc:4200", "https://prefect.example.org"),
    }
    assert settings["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert set(settings["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")) == guard.origins


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "*"),
        ("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", "https://*.example.org"),
        ("RLHF_PREFECT_HOSTS", "*"),
        ("RLHF_PREFECT_HOSTS", "https://prefect.example.org"),
    ],
)
def test_a_list_that_would_let_everybody_in_is_refused(unset, name, value):
    unset.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        own_pages.close_prefect(4200)


def check_closed(url):
    """Ask a running server as a stranger's page would, then as its own page and clients do."""

    def flows():
        return {flow["name"] for flow in ask(api, "flows/filter", {})}

    api, host = f"{url}/api", url.removeprefix("http://")
    create, body = f"{api}/flows/", {"name": "a-stranger-s"}
    for page in (*FOREIGN_PAGES, f"http://localhost:{int(host.rpartition(':')[2]) + 1}"):
        wish = {"Access-Control-Request-Method": "POST", "Origin": page}
        for found in (
            requests.options(create, headers=wish, timeout=60),
            requests.get(f"{api}/health", headers={"Origin": page}, timeout=60),
            requests.post(create, json=body, headers={"Origin": page}, timeout=60),
        ):
            assert found.status_code == 403
            assert "access-control-allow-origin" not in found.headers
        with pytest.raises(InvalidStatus):
            connect(f"{api}/events/out".replace("http", "ws", 1), origin=page)
    for name in FOREIGN_HOSTS[:-1]:
        found = requests.get(f"{api}/health", headers={"Host": name}, timeout=60)
        assert found.status_code == 403
    found = requests.post(create, json=body, timeout=60)
    assert (found.status_code, found.json()["detail"]) == (403, "Missing CSRF token.")
    assert "a-stranger-s" not in flows()

    page = {"Origin": url}
    token = requests.get(f"{api}/csrf-token?client=page", headers=page, timeout=60).json()["token"]
    page |= {"Prefect-Csrf-Client": "page", "Prefect-Csrf-Token": token}
    assert requests.post(create, json={"name": "own"}, headers=page, timeout=60).ok
    assert "own" in flows()


@pytest.mark.slow
def test_a_stranger_s_page_reaches_nothing_of_a_command_s_own_server(prefect_server):
    """Of one that lasts ``tests/served`` shows it."""
    check_closed(PREFECT_API_URL.value().removesuffix("/api"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (["--background"], {}, "--background and --workers start processes of their own"),
        ([], {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "*"}, "would let every page"),
    ],
)
def test_a_server_that_would_be_open_is_not_started(arguments, variables, says, tmp_path, forked):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = forked.run(
        *("patched_prefect", "server", "start", "--port", port, *arguments),
        cwd=tmp_path,
        env=kept | variables | {"PREFECT_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    told = " ".join((done.stdout + done.stderr).split())
    assert says in told
    assert "Traceback" not in told
