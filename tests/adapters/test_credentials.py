"""Passwords in addresses are used and never shown."""

import pytest

from rlhf_core.adapters.settings import without_credentials
from rlhf_core.adapters.tracking.mlflow_client import check_server, registry_errors, signs_in
from rlhf_core.adapters.tracking.stage_run import run_url
from rlhf_core.errors import RegistryError


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:SECRET@host:5000/api", "http://host:5000/api"),
        ("http://SECRET@host", "http://host"),
        ("https://user:SEC@RET@host/x", "https://host/x"),
        ("postgresql+asyncpg://user:SEC/RET@host/db", "postgresql+asyncpg://host/db"),
        ("no answer from http://u:SECRET@a/b and http://u:SECRET@c", "no answer from http://a/b and http://c"),
        ("http://host:5000/models@champion", "http://host:5000/models@champion"),
        ("models:/rlhf-policy@champion", "models:/rlhf-policy@champion"),
        ("sqlite:////home/somebody/mlflow.db", "sqlite:////home/somebody/mlflow.db"),
    ],
)  # fmt: skip
def test_only_the_credentials_of_addresses_are_left_out(address, shown):
    assert without_credentials(address) == shown


def test_a_tracking_server_with_a_password_is_named_without_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:SECRET@127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"at http://127\.0\.0\.1:9 cannot be"):
        check_server()
    assert run_url("1", "abc") == "http://127.0.0.1:9/#/experiments/1/runs/abc"


def test_what_mlflow_says_about_an_address_is_repeated_without_the_password():
    from mlflow.exceptions import MlflowException

    with pytest.raises(RegistryError) as refusal, registry_errors("opening"):
        raise MlflowException("no connection to postgresql://user:SECRET@host/db")
    assert str(refusal.value) == "opening: no connection to postgresql://host/db"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://user:SECRET@127.0.0.1:9", True),
        ("http://127.0.0.1:9", False),
        ("sqlite:///mlflow.db", False),
    ],
)
def test_who_is_named_in_the_address_signs_in(monkeypatch, address, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert signs_in() is expected


def test_who_stands_in_a_netrc_file_signs_in(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password SECRET\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert signs_in()
