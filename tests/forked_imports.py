"""What a server of forks imports once; nothing here may start a thread or open a connection."""

import os


def load_everything():
    """Import what commands import."""
    from rlhf_flows.engine.environment import prepare_environment

    prepare_environment()
    import dvc.cli
    import dvc.commands
    import dvc.repo
    import great_expectations
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import peft
    import prefect
    import prefect.server.api.server
    import sklearn.linear_model
    import transformers.models.auto.modeling_auto
    import uvicorn

    import rlhf_core.stages.evaluate
    import rlhf_core.stages.policy
    import rlhf_core.stages.prepare
    import rlhf_core.stages.promote
    import rlhf_core.stages.reward
    import rlhf_core.stages.sft
    import rlhf_flows.commands.cli
    import rlhf_flows.commands.data
    import rlhf_flows.commands.tables
    import rlhf_flows.engine.local
    import rlhf_flows.pipeline
    import rlhf_flows.stages
    import tests.servers

    return (
        *tests.servers.load(), dvc, rlhf_flows, great_expectations, matplotlib, mlflow, peft,
        prefect, rlhf_core, sklearn, transformers, uvicorn,
    )  # fmt: skip


def load_flows():
    """Import what deployed flows import, fake stages and all where they are on the path."""
    # A run's own variables say which of the product's loggers get Prefect's handlers, once.
    os.environ.pop("PREFECT_LOGGING_EXTRA_LOGGERS", None)
    import mlflow.artifacts
    import prefect.flow_engine
    import prefect.runner

    import rlhf_core.adapters.approval
    import rlhf_core.adapters.registry
    import rlhf_core.stages.versions.versions
    import rlhf_flows.collect
    import rlhf_flows.pipeline
    import rlhf_flows.promotion
    import rlhf_flows.stages

    return mlflow, prefect, rlhf_core, rlhf_flows
