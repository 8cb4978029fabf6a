"""What a server of forks imports once; nothing here may start a thread or open a connection."""

import os
from importlib import import_module

import pytest

EVERYTHING = (
    "datasketch",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.dirs",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.worktree",
    "dvc.rwlock",
    "dvc.utils.strictyaml",
    "dvc_data.index.checkout",
    "dvc_data.index.collect",
    "dvc_data.index.fetch",
    "dvc_data.index.push",
    "great_expectations",
    "krippendorff",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "networkx",
    "peft",
    "prefect",
    "prefect.cli.deploy",
    "prefect.server.api.server",
    "pyarrow.pandas_compat",
    "scmrepo.git",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "transformers.models.auto.modeling_auto",
    "uvicorn",
    "rlhf_core.adapters.datasets.expectations",
    "rlhf_core.stages.evaluate",
    "rlhf_core.stages.policy",
    "rlhf_core.stages.prepare",
    "rlhf_core.stages.promote",
    "rlhf_core.stages.reward",
    "rlhf_core.stages.sft",
    "rlhf_flows.commands.cli",
    "rlhf_flows.commands.data",
    "rlhf_flows.commands.tables",
    "rlhf_flows.commands.local",
    "rlhf_flows.pipeline",
    "rlhf_flows.stages",
)
"""What commands import, and DVC's, which import 500 modules before they begin."""


def load_everything():
    """Import what commands import."""
    from rlhf_flows.engine.environment import prepare_environment

    prepare_environment()
    for name in EVERYTHING:
        import_module(name)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from rlhf_core.adapters.datasets.data_docs import _page_view
    from tests import servers

    servers.load()
    get_checkpoint_conversion_mapping("llama")  # compiles every model's: a tenth of a second
    templates = _page_view().env
    for name in templates.list_templates():
        templates.get_template(name)


def load_tests(paths):
    """Import the tests as pytest does, asserts rewritten: it has them when it collects again."""
    os.environ.pop("PYTEST_ADDOPTS", None)  # they are for those who run them
    pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *paths])


def load_flows():
    """Import what deployed flows import, fake stages and all where they are on the path."""
    # A run's own variables say which of the product's loggers get Prefect's handlers, once.
    os.environ.pop("PREFECT_LOGGING_EXTRA_LOGGERS", None)
    import mlflow.artifacts
    import prefect.flow_engine
    import prefect.runner

    import rlhf_core.adapters.registry.approval
    import rlhf_core.adapters.registry.registry
    import rlhf_core.stages.versions.versions
    import rlhf_flows.collect
    import rlhf_flows.pipeline
    import rlhf_flows.promotion
    import rlhf_flows.stages

    return mlflow, prefect, rlhf_core, rlhf_flows
