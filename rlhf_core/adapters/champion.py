"""What was decided about a version, and the aliases that follow from it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.mlflow_client import mlflow_client, patiently
from rlhf_core.adapters.registry import CHAMPION, PREVIOUS, find_version
from rlhf_core.adapters.stage_run import StageRun
from rlhf_core.errors import RegistryError
from rlhf_core.schema import EvaluationReport, ModelRef, PromotionDecision, Verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

VERDICT = "rlhf.verdict"
GATE = "rlhf.gate."
BEFORE = "rlhf.champion_before"
"""Tag of a version: the version that was champion when this one became it."""


def record_decision(
    decision: PromotionDecision,
    report: EvaluationReport,
    *,
    run: StageRun,
    upstream: Mapping[str, ModelRef] | None = None,
) -> None:
    """Write a verdict where people look: tags and metrics of the version, files of the run.

    The version gets the tags ``rlhf.verdict``, ``rlhf.verdict_reasons``, ``rlhf.verdict_run`` and
    one ``rlhf.gate.<metric>`` per gate; every metric goes to run and version with ``/low`` and
    ``/high`` beside it; the run keeps ``evaluation/report.json`` and ``decision.json``.
    A model that is not in the registry (a local folder) gets the run's part only.

    Args:
        decision: the verdict.
        report: what it was decided from.
        run: the open run that measured it.
        upstream: further models the verdict rests on, by role (``judge``); lineage tags.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, record in (("report", report), ("decision", decision)):
            path = Path(folder) / f"{name}.json"
            path.write_text(record.model_dump_json(indent=1), encoding="utf-8")
            run.log_artifact(path, "evaluation")
    if report.samples is not None:
        run.log_artifact(report.samples, "evaluation")
    model = decision.model
    registered = model.uri.startswith("models:/")
    version = find_version(model.uri) if registered else None
    _log_estimates(report, run, version)
    run.log_tags({VERDICT: decision.verdict})
    if version is not None:
        tags = _decision_tags(decision, run)
        tags |= {f"rlhf.upstream.{role}": ref.uri for role, ref in (upstream or {}).items()}
        patiently(f"tagging {model.uri}", lambda: _tag_version(model, tags, decision.verdict))


def _decision_tags(decision: PromotionDecision, run: StageRun) -> dict[str, str]:
    tags = {VERDICT + "_reasons": "\n".join(decision.reasons), VERDICT + "_run": run.run_id}
    for result in decision.results:
        tags[GATE + result.gate] = f"{result.verdict}: {result.reason}"
    return tags


def _tag_version(model: ModelRef, tags: Mapping[str, str], verdict: Verdict) -> None:
    """Replace what was decided before; the verdict itself goes first and comes last.

    A kill in between leaves a version without a verdict, which cannot be promoted.
    """
    client = mlflow_client()
    old = client.get_model_version(model.name, model.version).tags
    stale = [key for key in old if key.startswith(GATE) and key not in tags]
    for key in (VERDICT, *stale):
        if key in old:
            client.delete_model_version_tag(model.name, model.version, key)
    for key, value in {**tags, VERDICT: verdict}.items():
        client.set_model_version_tag(model.name, model.version, key, value)


def _log_estimates(report: EvaluationReport, run: StageRun, version: "ModelVersion | None") -> None:
    model_id = None
    if version is not None and (version.source or "").startswith("models:/"):
        model_id = str(version.source).removeprefix("models:/")
    values: dict[str, float] = {}
    for name, estimate in report.metrics.items():
        values |= {
            name: estimate.value,
            f"{name}/low": estimate.low,
            f"{name}/high": estimate.high,
        }
    run.log_evaluation(values, model_id)


def recorded_verdict(reference: str) -> tuple[Verdict | None, tuple[str, ...]]:
    """Return the verdict written with a version, and its reasons; None before any gate."""
    tags = find_version(reference).tags
    reasons = tuple(tags.get(VERDICT + "_reasons", "").splitlines())
    verdicts: dict[str | None, Verdict] = {"PROMOTE": "PROMOTE", "HOLD": "HOLD", "REJECT": "REJECT"}
    return verdicts.get(tags.get(VERDICT)), reasons


def promote_to_champion(reference: str) -> str | None:
    """Move ``champion`` to a version and ``previous-champion`` to the one before it.

    Repeating it changes nothing. ``candidate`` stays on the newest version.

    Returns:
        The version that was champion before; None if there was none.

    Raises:
        RegistryError: the version is not registered, or its recorded verdict is not PROMOTE.
    """
    version = find_version(reference)
    verdict, _ = recorded_verdict(reference)
    if verdict != "PROMOTE":
        raise RegistryError(
            f"{reference} has verdict {verdict or 'none'}; only PROMOTE makes a champion. "
            "Evaluate it first, or see its reasons with `rlhf lineage`"
        )
    return patiently(f"promoting {reference}", lambda: _promote(version))


def _promote(version: "ModelVersion") -> str | None:
    client, name, number = mlflow_client(), version.name, str(version.version)
    champion = _alias(name, CHAMPION)
    if champion == number:
        return find_version(f"models:/{name}/{number}").tags.get(BEFORE)
    if champion is not None:
        # The way back is written first: a kill between the calls never loses it.
        client.set_model_version_tag(name, number, BEFORE, champion)
        client.set_registered_model_alias(name, PREVIOUS, champion)
    client.set_registered_model_alias(name, CHAMPION, number)
    return champion


def rollback(name: str) -> tuple[str, str]:
    """Move ``champion`` of a registered model back to ``previous-champion``.

    ``previous-champion`` then moves to the one before, or goes if there was none. A rollback that
    was killed in between left both on the same version: the next one finishes it.

    Returns:
        The version that was champion, and the one that is now.

    Raises:
        RegistryError: there is no champion, or none before it.
    """
    champion = str(find_version(f"models:/{name}@{CHAMPION}").version)
    previous = _alias(name, PREVIOUS)
    if previous is None:
        raise RegistryError(
            f"models:/{name}: nothing to roll back to: version {champion} is champion and no "
            "other was before it"
        )
    earlier = find_version(f"models:/{name}/{previous}").tags.get(BEFORE)
    patiently(f"rolling {name} back", lambda: _set_alias(name, CHAMPION, previous))
    patiently(f"rolling {name} back", lambda: _set_alias(name, PREVIOUS, earlier))
    return champion, previous


def _set_alias(name: str, alias: str, version: str | None) -> None:
    """Point ``alias`` at a version, or remove it."""
    if version is None:
        mlflow_client().delete_registered_model_alias(name, alias)
    else:
        mlflow_client().set_registered_model_alias(name, alias, version)


def alias_uris(name: str) -> dict[str, str]:
    """Return each alias of a registered model with the version it points at."""
    aliases = patiently(
        f"aliases of {name}", lambda: mlflow_client().get_registered_model(name).aliases
    )
    return {alias: f"models:/{name}/{version}" for alias, version in aliases.items()}


def _alias(name: str, alias: str) -> str | None:
    uri = alias_uris(name).get(alias)
    return None if uri is None else uri.rsplit("/", 1)[1]
