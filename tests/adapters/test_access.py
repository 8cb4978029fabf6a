"""What a team's servers refuse is said before any work, with who was refused and what to set."""

import shutil
import sys

import pytest

from rlhf_core.adapters.registry.access import check_access, require_release_rights
from rlhf_core.adapters.registry.releases import Release
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.adapters.tracking.tracking import open_run
from rlhf_core.errors import RegistryError
from tests.team import (
    ADMIN,
    Authority,
    add_user,
    answers,
    free_port,
    mlflow_with_users,
    object_store,
    permit,
    running,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("access")]


@pytest.fixture(scope="module")
def with_users(tmp_path_factory, fresh_database, forked):
    folder = tmp_path_factory.mktemp("users")
    shutil.copy(fresh_database, folder)
    authority = Authority(folder)
    files = ("--artifacts-destination", str(folder / "files"))
    with mlflow_with_users(folder, authority, *files, forked=forked) as url:
        add_user(url, authority, "reader", "Reader-of-the-test-1")
        yield url, authority


@pytest.fixture
def asked(with_users, monkeypatch):
    """The server by its address, its certificate known, and nobody's name."""
    url, authority = with_users
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority.file))
    for name in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return monkeypatch


def sign_in(asked, name, password):
    asked.setenv("MLFLOW_TRACKING_USERNAME", name)
    asked.setenv("MLFLOW_TRACKING_PASSWORD", password)


def refused():
    """What is said, at once: a patience of ten minutes would end the test."""
    with pytest.raises(RegistryError) as refusal:
        check_access("rlhf", patience=600)
    return str(refusal.value)


def test_whoever_may_write_is_let_through(asked):
    sign_in(asked, *ADMIN)
    check_access("rlhf", patience=0)
    check_access("rlhf", patience=0)


def test_a_certificate_that_is_not_trusted_names_the_variable_of_mlflows_own_client(asked):
    sign_in(asked, *ADMIN)
    asked.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    assert "set MLFLOW_TRACKING_SERVER_CERT_PATH" in refused()
    asked.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    check_access("rlhf", patience=0)


def test_without_a_password_or_with_a_wrong_one_the_variables_are_named(asked):
    assert "a client without a user name in (401)" in refused()
    sign_in(asked, ADMIN[0], "WRONG")
    message = refused()
    assert "does not let user 'admin' in (401)" in message
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "WRONG" not in message


def test_whoever_may_only_read_is_named_before_any_work(asked):
    sign_in(asked, *ADMIN)
    check_access("rlhf", patience=0)
    sign_in(asked, "reader", "Reader-of-the-test-1")
    message = refused()
    assert "refuses user 'reader' (403" in message
    assert "EDIT" in message


def test_a_permission_that_is_missing_for_one_model_is_found_too(asked):
    sign_in(asked, *ADMIN)
    client = mlflow_client()
    client.create_registered_model("mine-policy")
    sign_in(asked, "reader", "Reader-of-the-test-1")
    with pytest.raises(RegistryError, match="refuses user 'reader'"):
        check_access("mine", patience=600)


def test_the_rights_to_move_a_release_are_asked_for_and_nothing_is_changed(with_users, asked):
    url, authority = with_users
    add_user(url, authority, "editor", "Editor-of-the-test-1")
    sign_in(asked, *ADMIN)
    client = mlflow_client()
    client.create_registered_model("team-reward")
    client.create_model_version("team-reward", source="s3://nowhere/model")
    client.set_registered_model_alias("team-reward", "champion", "1")
    permit(url, authority, "team-reward", "editor")
    before = client.get_registered_model("team-reward")
    sign_in(asked, "reader", "Reader-of-the-test-1")
    with pytest.raises(
        RegistryError, match=r"team-reward.*user 'reader' \(403.*nothing was changed"
    ):
        require_release_rights("team")
    sign_in(asked, "editor", "Editor-of-the-test-1")
    require_release_rights("team")
    without_reward = (Release(policy="models:/elsewhere/1"),)
    with pytest.raises(RegistryError, match=r"takes an alias of team-reward away .permission MANA"):
        require_release_rights("team", without_reward)
    after = client.get_registered_model("team-reward")
    assert (after.tags, after.aliases) == (before.tags, before.aliases)


def test_a_refusal_in_the_middle_of_the_work_is_not_repeated(asked):
    sign_in(asked, ADMIN[0], "WRONG")
    calls = []

    def call():
        calls.append(1)
        mlflow_client().search_experiments()

    with pytest.raises(RegistryError, match="401"):
        with_retries("asking", call, patience=600)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def direct(tmp_path_factory, fresh_database, forked):
    """MLflow whose clients write to the object store themselves."""
    folder = tmp_path_factory.mktemp("direct")
    shutil.copy(fresh_database, folder)
    with object_store(folder, forked=forked) as store:
        url = f"http://127.0.0.1:{free_port()}"
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1",
            "--port", url.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
            "--no-serve-artifacts", "--default-artifact-root", "s3://artifacts/mlflow",
        ]  # fmt: skip
        with running(command, folder, "mlflow", answers(f"{url}/health"), forked=forked):
            yield url, store


@pytest.fixture
def in_s3(direct, monkeypatch, tmp_path):
    url, store = direct
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    return monkeypatch


def fresh_store_clients():
    """MLflow keeps its clients of the store, with the keys they were made with."""
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    boto3.DEFAULT_SESSION = None
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def test_files_go_to_the_object_store_by_the_clients_own_keys(in_s3):
    fresh_store_clients()
    check_access("rlhf", patience=0)


def test_without_keys_the_variables_are_named_and_no_run_stays_running(in_s3, config, context):
    fresh_store_clients()
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        in_s3.delenv(f"AWS_{name}")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refused()
    with (
        pytest.raises(RegistryError, match="AWS_ACCESS_KEY_ID"),
        open_run(config, context, "sft", inputs={}),
    ):
        pass
    client = mlflow_client()
    experiment = client.get_experiment_by_name(config.project)
    states = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert states == ["FAILED"]


def test_without_boto3_the_extra_is_named(in_s3):
    in_s3.setitem(sys.modules, "boto3", None)
    from mlflow.store.artifact import s3_artifact_repo

    s3_artifact_repo._cached_get_s3_client.cache_clear()
    assert "rlhf-pipeline[s3]" in refused()


def test_an_object_store_that_is_gone_is_waited_for(in_s3):
    fresh_store_clients()
    in_s3.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryError, match=r"does not answer.*gave up after 1 s"):
        check_access("rlhf", patience=1)
