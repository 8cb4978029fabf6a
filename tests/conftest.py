"""Settings of Prefect and MLflow, and a real MLflow on SQLite, for every room that needs one."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from rlhf_core.adapters.settings import set_environment_defaults
from rlhf_core.garbage import loading_begins, loading_ends
from rlhf_flows.engine.environment import PREFECT_DEFAULTS
from tests.forked import WITHOUT_PICTURES, Forked
from tests.registries import share_preparations

ROOT = Path(__file__).parents[1]

loading_begins()

# Before Prefect is imported by any test of any folder, for it reads its settings once.
set_environment_defaults()
for name, value in PREFECT_DEFAULTS.items():
    os.environ.setdefault(name, value)

settings.register_profile(
    "without a clock", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("without a clock")  # a busy machine breaks nothing


FORKED = "forked"
"""Folder of the server of forks, in the one that the workers of pytest-xdist share."""
TERMINATED = []
"""Signals by which this process was asked to end."""


def pytest_configure(config):
    """SIGTERM ends the tests as Ctrl-C does: servers that fixtures have started end with them."""
    own, worker = os.getpid(), "PYTEST_XDIST_WORKER" in os.environ
    distributes = not worker and bool(config.getoption("numprocesses", None))

    def stop(number, _):
        if os.getpid() != own:  # a fork that a test ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if TERMINATED:  # the first is being obeyed
            return
        TERMINATED.append(number)
        if distributes:  # pytest-xdist alone would give its workers ten seconds
            # Not the server of forks: those that end need it, and it ends after them by itself.
            group = os.getpgid(0)
            workers = [it for it in psutil.Process().children() if os.getpgid(it.pid) == group]
            for process in workers:
                process.terminate()
            psutil.wait_procs(workers)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts them
def pytest_sessionstart(session):
    """Workers are forks of one process that has imported everything, as commands are."""
    config = session.config
    if sys.platform == "linux" and config.getoption("numprocesses", None):
        folder = config._tmp_path_factory.getbasetemp() / FORKED
        made = Forked(folder, tests=map(os.path.abspath, config.args))
        config.option.tx = [f"popen//python={made.as_python()}"] * len(config.option.tx)
        config.add_cleanup(made.end)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    """A worker that was asked to end does so by itself, once its fixtures are done."""
    if TERMINATED and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(128 + TERMINATED[0])


@pytest.fixture(autouse=True)
def logging_as_before():
    """What a command sets of logging in a test's own process ends with that test."""
    loggers = [logging.getLogger(name) for name in (None, "rlhf_core", "rlhf_flows")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        if logger.level != level:  # to set one makes every logger forget what it knows: 1 ms
            logger.setLevel(level)
        logger.handlers[:] = handlers


KNOWN = set(os.listdir(ROOT))
"""What lies in the checkout, before the first test and after each."""


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_checkout():
    """Databases, models and pictures of tests lie in folders of their own."""
    yield
    new = set(os.listdir(ROOT)) - KNOWN
    KNOWN.update(new)
    left = sorted(name for name in new if not name.startswith("."))  # hidden: what tools keep
    assert not left, f"{left} in {ROOT}: left by this test or by one that ran beside it"


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """MLflow's tables, made once: its migrations take seconds."""
    from rlhf_core.adapters.tracking.mlflow_client import _client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        share_preparations(patch)
        _client(f"sqlite:///{path}").search_experiments()
        yield path


@pytest.fixture
def mlflow_home(tmp_path, monkeypatch, fresh_database):
    """Working directory with an unused MLflow database in it and no server configured."""
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RLHF_TRACKING_PATIENCE", "3")
    return tmp_path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """What the workers of pytest-xdist share lies here."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def forked(shared_folder):
    """Commands without their start-up; the workers of pytest-xdist share one server."""
    made = Forked(shared_folder / FORKED)
    yield made
    made.end()


@pytest.fixture(scope="session")
def prefect_database(shared_folder, forked):
    """Prefect's tables, made once: its migrations take five seconds of a processor."""
    home = shared_folder / "prefect"
    with FileLock(shared_folder / "prefect.lock"):
        if not home.exists():
            made = home.with_name("prefect.tmp")
            make_prefect_database(made, forked)
            made.rename(home)
    return home / "prefect.db"


def make_prefect_database(home, forked):
    from rlhf_flows.servers import temporary_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setattr(temporary_server, "subprocess", forked.subprocess())
        with temporary_server.temporary_server() as server:
            server.wait()
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it into one file


@pytest.fixture(scope="module")
def forked_tools(forked):
    """DVC, and what DVC runs, without their start-up and without pictures."""
    from rlhf_core.adapters.datasets import versioning

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versioning, "_run", forked.instead_of(versioning._run))
        patch.setenv(WITHOUT_PICTURES, "1")
        yield forked


@pytest.fixture
def forked_prefect(forked, monkeypatch):
    """Prefect's temporary server without its start-up."""
    from rlhf_flows.servers import temporary_server

    monkeypatch.setattr(temporary_server, "subprocess", forked.subprocess())


LONGEST_FIRST = (
    "served",
    "small_demo",
    "faults",
    "outages",
    "data_versions",
    "flows",
    "processes",
    "evaluated",
)
"""Groups that take minutes, many of them waiting: with one of them left for the end, all the other
workers would have nothing to do meanwhile."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Share fixtures and start the longest first.

    Tests of one module go to one worker, so that what its fixtures make is made once; those of
    ``tests/flows`` share a Prefect server as well.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            flows = "flows" if item.path.parent.name == "flows" else str(item.path)
            item.add_marker(pytest.mark.xdist_group(flows))
    items.sort(key=_turn)


def pytest_collection_finish():
    """From here on, what tests make is looked through, and not what was imported for them."""
    loading_ends()
    gc.freeze()  # in a fork loading had ended


def _turn(item):
    (group,) = item.get_closest_marker("xdist_group").args
    if group in LONGEST_FIRST:
        return LONGEST_FIRST.index(group)
    return len(LONGEST_FIRST) + (item.get_closest_marker("slow") is None)
