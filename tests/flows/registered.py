"""What must be true of MLflow and of a run's folder after any number of kills."""

from collections import Counter
from pathlib import Path
from urllib.parse import urlparse

from mlflow.entities import ViewType

from rlhf_core.models.files import weights_sha256


def versions(client):
    """Every version of every registered model; the journals of releases and looks hold none."""
    return [
        version
        for model in client.search_registered_models()
        if model.tags.get("rlhf.kind") not in ("releases", "looks")
        for version in client.search_model_versions(f"name = '{model.name}'")
    ]


def check_versions(client, judged=("sft", "reward", "judge", "policy")):
    """No version is there twice or half: status, files, weights, model behind it, and the verdict
    of those that were judged."""
    found = versions(client)
    made = Counter((v.tags["rlhf.run_id"], v.tags["rlhf.stage"]) for v in found)
    assert set(made.values()) == {1}, made
    for version in found:
        assert version.status == "READY"
        model = client.get_logged_model(version.source.removeprefix("models:/"))
        assert str(model.status) == "READY"
        files = client.get_model_version_download_uri(version.name, version.version)
        assert weights_sha256_of(client, files) == version.tags["rlhf.sha256"]
        if version.tags["rlhf.stage"] in judged:
            assert version.tags["rlhf.verdict"] == "PROMOTE", version.name
    for name in {version.name for version in found}:
        newest = max(int(version.version) for version in found if version.name == name)
        aliases = client.get_registered_model(name).aliases
        assert int(aliases["candidate"]) == newest
        assert "champion" in aliases


def weights_sha256_of(client, uri):
    if uri.startswith("models:/"):
        uri = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return weights_sha256(Path(urlparse(uri).path))


def check_runs(client):
    """No model is stored but not registered, no run is left open, no step was recorded twice."""
    (experiment,) = client.search_experiments(filter_string="name = 'rlhf'")
    models = client.search_logged_models([experiment.experiment_id])
    assert len(models) == len(versions(client))
    for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL):
        assert run.info.status == "FINISHED", run.data.tags


def recorded_steps(client, pipeline_run):
    """Steps of every metric of a pipeline run's stages, with how often each was recorded."""
    (experiment,) = client.search_experiments(filter_string="name = 'rlhf'")
    runs = client.search_runs([experiment.experiment_id], f"tags.`rlhf.run_id` = '{pipeline_run}'")
    assert Counter(run.data.tags["rlhf.stage"] for run in runs).most_common(1)[0][1] == 1
    return {
        (run.data.tags["rlhf.stage"], name): Counter(
            point.step for point in client.get_metric_history(run.info.run_id, name)
        )
        for run in runs
        for name in run.data.metrics
    }


def steps_recorded_twice(client, pipeline_run):
    """Training steps that stand twice in a metric of a pipeline run.

    What is measured at the last step is measured again by a stage that was killed after it.
    """
    return [
        (name, step)
        for (_, name), steps in recorded_steps(client, pipeline_run).items()
        for step, count in steps.items()
        if count > 1 and step < max(steps)
    ]
