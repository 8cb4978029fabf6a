"""Runs that have ended, without anything trained."""

import os
import time

from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.schema import EvaluationReport, ModelRef, PromotionDecision, StageResult
from rlhf_flows.engine.runs.cleaning import look_for_old_runs
from rlhf_flows.engine.runs.folder import open_run
from rlhf_flows.engine.runs.needed import Rule
from rlhf_flows.engine.runs.stage_folder import run_once


class Folder:
    """Runs as stages leave them, and what MLflow has of them."""

    def __init__(self, config):
        self.config = config
        self.client = mlflow_client()

    def run(
        self, name, verdict="REJECT", *, days_old=0, stage="evaluate", reads="", sha="", **more
    ):
        """Make a run whose ``stage`` ended; the policy's version is ``rlhf-policy`` of its tags."""
        context = open_run(self.config.model_copy(update=more), name)
        model = context.stage_directory(stage) / "model"
        version = self.version("rlhf-policy", name)
        ref = ModelRef(
            name="rlhf-policy",
            version=version,
            uri=f"models:/rlhf-policy/{version}",
            path=model,
            sha256=sha or f"{int(version):064x}",
            kind="causal",
            run_id="r",
        )
        told = {"stage": stage, "model": ref}
        result = StageResult(
            **told,
            report=EvaluationReport(**told, metrics={}),
            decision=PromotionDecision(**told, verdict=verdict, results=(), reasons=()),
            seconds=1,
            tracking_url="",
        )
        run_once(context, stage, {"sft": reads}, lambda: result, record=StageResult)
        model.mkdir()
        (model / "model.safetensors").write_bytes(os.urandom(50_000))
        at = time.time() - days_old * 86_400
        os.utime(context.directory / "config.json", (at, at))
        return context

    def version(self, name, run, **tags):
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        tags = {"rlhf.run_id": run, **{f"rlhf.{key}": text for key, text in tags.items()}}
        return str(self.client.create_model_version(name, "/nowhere", tags=tags).version)

    def why(self, name, **rule):
        found = look_for_old_runs(self.config.runs, Rule(**rule))
        return "; ".join(next(run for run in found.runs if run.run_id == name).kept_because)
