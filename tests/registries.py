"""MLflow registries that are made once and copied for each test that wants one."""

import functools
import shutil
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client

DATABASE, FILES = "mlflow.db", "mlartifacts"


def share_preparations(patch):
    """Let the databases of all tests share what MLflow and SQLAlchemy make ready for each anew.

    These are the statements that are compiled, a cache of the engine with the dialect in its keys,
    and the newest version of the tables, for which MLflow runs the files of all its migrations.
    """
    from mlflow.store.db import utils

    make, engines = utils.create_sqlalchemy_engine, {}

    def create(uri):
        engine = make(uri)
        first = engines.setdefault(engine.dialect.name, engine)
        engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
        return engine

    patch.setattr(utils, "create_sqlalchemy_engine", create)
    newest = functools.cache(utils._get_latest_schema_revision)
    patch.setattr(utils, "_get_latest_schema_revision", newest)


@contextmanager
def registry_in(folder, fresh_database):
    """A client of a registry with fresh tables in ``folder``, which is where to be meanwhile."""
    shutil.copy(fresh_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield mlflow_client()


def put_back(database, target):
    """Make a registry what another one is, under the connections that are open."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as here:
        source.backup(here)


def copy_registry(source, target):
    """Make the unused registry of one working directory what that of another is, files and all.

    The paths in it become those of ``target``.
    """
    with closing(sqlite3.connect(target / DATABASE)) as here:
        assert not here.execute("SELECT name FROM registered_models").fetchall()
    put_back(source / DATABASE, target / DATABASE)
    with closing(sqlite3.connect(target / DATABASE)) as here:
        _replace(here, str(source), str(target))
    copy_files(source / FILES, target / FILES, str(source), str(target))


def copy_home(source, target):
    """Copy the registry of a working directory, and the folders of its runs."""
    copy_registry(source, target)
    copy_files(source / "runs", target / "runs", str(source), str(target))


def _replace(database, before, after):
    """Replace a text wherever it stands in a database."""
    with database:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
        for (table,) in database.execute(tables).fetchall():
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
                    f' WHERE instr("{column}", ?)',
                    (before, after, before),
                )


def copy_files(source, target, before, after):
    """Copy a folder with ``before`` replaced by ``after`` in its files; what is linked stays so."""

    def copy(file, copied):
        file, copied = Path(file), Path(copied)
        if file.stat().st_nlink > 1:
            copied.hardlink_to(file)
        else:
            copied.write_bytes(file.read_bytes().replace(before.encode(), after.encode()))

    shutil.copytree(source, target, copy_function=copy)
