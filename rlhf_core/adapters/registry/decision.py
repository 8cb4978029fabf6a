"""What was decided about a version, written where people look and where promotion reads it."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.adapters.registry.versions import UPSTREAM, find_version, upstream_uris
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client, with_retries
from rlhf_core.adapters.tracking.stage_run import StageRun
from rlhf_core.errors import ConfigError
from rlhf_core.schema import EvaluationReport, ModelRef, PromotionDecision, Verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

VERDICT = "rlhf.verdict"
GATE = "rlhf.gate."
EVALUATION = VERDICT + "_run"
"""Tag of a version: the run that evaluated it."""
COMPARED = "rlhf.compared_with_champion"
"""Tag of a version: the champion its evaluation compared it with; ``NOBODY`` where none was."""
NOBODY = "none"
JUDGED_BY = "rlhf.judge"
"""Tag of a version: who judged it, where that is no registered model of ours."""
_LONGEST_KEY = 200
"""Characters of a gate's name in a tag; MLflow takes keys of 250, without brackets and the like."""


def record_decision(
    decision: PromotionDecision,
    report: EvaluationReport,
    *,
    run: StageRun,
    upstream: Mapping[str, ModelRef] | None = None,
    more_tags: Mapping[str, str] | None = None,
) -> None:
    """Write a verdict where people look: tags and metrics of the version, files of the run.

    The version gets the tags ``rlhf.verdict``, ``rlhf.verdict_reasons``, ``rlhf.verdict_run`` and
    one ``rlhf.gate.<metric>`` per gated metric, a line for each of its gates; every metric goes to
    run and version with ``/low`` and ``/high`` beside it; the run keeps ``evaluation/report.json``
    and ``decision.json``.
    A model that is not in the registry (a local folder) gets the run's part only.

    Args:
        decision: the verdict.
        report: what it was decided from.
        run: the open run that measured it.
        upstream: further models the verdict rests on, by role (``judge``); lineage tags.
        more_tags: further tags of the version.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, record in (("report", report), ("decision", decision)):
            path = Path(folder) / f"{name}.json"
            path.write_text(record.model_dump_json(indent=1), encoding="utf-8")
            run.log_artifact(path, "evaluation")
    if report.samples is not None:
        run.log_artifact(report.samples, "evaluation")
    model = decision.model
    version = find_version(model.uri) if model.registered else None
    _log_estimates(report, run, version)
    run.log_tags({VERDICT: decision.verdict})
    if version is not None:
        tags = _decision_tags(decision, report, run) | dict(more_tags or {})
        tags |= {f"{UPSTREAM}{role}": ref.uri for role, ref in (upstream or {}).items()}
        with_retries(f"tagging {model.uri}", lambda: _tag_version(model, tags, decision.verdict))


def _decision_tags(
    decision: PromotionDecision, report: EvaluationReport, run: StageRun
) -> dict[str, str]:
    """Tags of a decision; of the slices, which are many, those that did not pass."""
    tags = {VERDICT + "_reasons": "\n".join(decision.reasons), EVALUATION: run.run_id}
    if report.stage == "policy":
        tags[COMPARED] = report.champion or NOBODY
    for result in decision.results:
        if result.verdict != "PROMOTE" or result.gate in report.metrics or result.estimate is None:
            key = re.sub(r"[^\w./\- :]", "-", result.gate)[:_LONGEST_KEY]
            # Two gates on one metric, as a range has, share its tag.
            earlier = [tags[GATE + key]] if GATE + key in tags else []
            tags[GATE + key] = "\n".join([*earlier, f"{result.verdict}: {result.reason}"])
    return tags


def _tag_version(model: ModelRef, tags: Mapping[str, str], verdict: Verdict) -> None:
    """Replace what was decided before; the verdict itself goes first and comes last.

    A kill in between leaves a version without a verdict, which cannot be promoted.
    """
    client = mlflow_client()
    old = client.get_model_version(model.name, model.version).tags
    replaced = (JUDGED_BY, UPSTREAM + "judge") if COMPARED in tags else ()
    stale = [key for key in old if key.startswith((GATE, *replaced)) and key not in tags]
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
    return verdict_of(find_version(reference).tags)


def verdict_of(tags: Mapping[str, str]) -> tuple[Verdict | None, tuple[str, ...]]:
    """Return the verdict in the tags of a version, and its reasons; None before any gate."""
    reasons = tuple(tags.get(VERDICT + "_reasons", "").splitlines())
    verdicts: dict[str | None, Verdict] = {"PROMOTE": "PROMOTE", "HOLD": "HOLD", "REJECT": "REJECT"}
    return verdicts.get(tags.get(VERDICT)), reasons


def is_overtaken(uri: str, tags: Mapping[str, str], champion: str | None) -> bool:
    """Tell whether a candidate was compared with another champion than the one in force.

    A verdict that no evaluation wrote says nothing of a comparison; who wrote it answers for it.

    Args:
        uri: ``models:/<name>/<version>``.
        tags: its own.
        champion: in force; None where there is none.
    """
    compared = tags.get(COMPARED)
    if compared == (champion or NOBODY) or champion == uri:
        return False
    return compared is not None or (champion is not None and EVALUATION in tags)


def judge_of(policy: str) -> str | None:
    """Return the judge of a policy's release; None where the registry knows of none.

    Raises:
        ConfigError: it was none of ours, so the registry does not say how to reach it.
    """
    outside = find_version(policy).tags.get(JUDGED_BY)
    if outside:
        raise ConfigError(
            f"the champion {policy} was judged by {outside}; name it in evaluation.judge for the "
            "same measure, or another (`run`: the one this run trained)"
        )
    return upstream_uris(policy).get("judge")
