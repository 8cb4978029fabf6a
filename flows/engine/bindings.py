"""The seam between order and work: every call from a flow into the core goes through here.

Each function imports its stage when called, so that naming a flow costs neither torch nor MLflow,
and a test can put another function in its place.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_core.config import PipelineConfig, PreparationConfig
from rlhf_core.ports import Observer
from rlhf_core.schema import (
    DatasetSplits,
    Message,
    ModelRef,
    ModelRole,
    RunContext,
    StageName,
    StageResult,
    Verdict,
)
from rlhf_flows.engine.environment import STATE

if TYPE_CHECKING:
    from rlhf_core.adapters.lineage import Lineage
    from rlhf_core.adapters.required_gates import Requirement
    from rlhf_core.config import RequiredGates
    from rlhf_core.stages.promote import Promotion, Rollback


def prepare_data(config: PreparationConfig) -> DatasetSplits:
    """Raw data to a validated dataset version."""
    from rlhf_core.stages.prepare import prepare_data as prepare

    return prepare(config)


def read_splits(directory: Path) -> DatasetSplits:
    """Read a dataset version that was prepared before, checking its bytes."""
    from rlhf_core.stages.prepare import read_splits as read

    return read(directory)


def prepare_fingerprint(config: PreparationConfig) -> str:
    """Return what decides the dataset: raw files, settings, code."""
    from rlhf_core.stages.prepare import prepare_fingerprint as fingerprint

    return fingerprint(config)


def base_digest(config: PipelineConfig) -> str:
    """Return a digest of the base model's files."""
    from rlhf_core.stages.base_model import base_digest as digest

    return digest(config.model)


def train_sft(
    config: PipelineConfig, splits: DatasetSplits, context: RunContext, observer: Observer
) -> StageResult:
    """Demonstrations to the SFT model."""
    from rlhf_core.stages.sft import train_sft as train

    return train(config, splits, context, observer)


def train_reward(
    config: PipelineConfig,
    splits: DatasetSplits,
    sft: ModelRef,
    context: RunContext,
    role: Literal["reward", "judge"],
    observer: Observer,
) -> StageResult:
    """One half of the preferences to the reward model or to the judge."""
    from rlhf_core.stages.reward import train_reward as train

    return train(config, splits, sft, context, role, observer)


def train_policy(
    config: PipelineConfig,
    splits: DatasetSplits,
    sft: ModelRef,
    reward: ModelRef | None,
    context: RunContext,
    observer: Observer,
) -> ModelRef:
    """SFT model to policy, with PPO against the reward model or with DPO from the pairs."""
    from rlhf_core.stages.policy import train_policy as train

    return train(config, splits, sft, reward, context, observer)


def evaluate_policy(
    config: PipelineConfig, splits: DatasetSplits, models: dict[str, ModelRef], context: RunContext
) -> StageResult:
    """``policy`` against ``sft`` and ``champion`` on held-out prompts, by ``judge``."""
    from rlhf_core.stages.evaluate import evaluate_policy as evaluate

    return evaluate(
        config,
        splits,
        policy=models["policy"],
        sft=models["sft"],
        reward=models.get("reward"),
        judge=models["judge"],
        champion=models.get("champion"),
        context=context,
    )


def promote_policy(config: PipelineConfig, result: StageResult, context: RunContext) -> "Promotion":
    """Move ``champion`` to the evaluated policy and keep the one before it."""
    from rlhf_core.stages.promote import promote_policy as promote

    return promote(config, result, context)


def keep_record(config: PipelineConfig, context: RunContext, stage: StageName) -> None:
    """Keep with MLflow what a stage handed on, for the other machines, unless it is kept."""
    from rlhf_core.adapters.run_records import keep_record as keep

    keep(config, context, stage)


def keep_absence(config: PipelineConfig, context: RunContext, stage: StageName) -> None:
    """Tell the other machines that a stage is to be done again."""
    from rlhf_core.adapters.run_records import keep_absence as keep

    keep(config, context, stage)


def bring_records(project: str | None, context: RunContext) -> list[str]:
    """Bring back what other machines did of a run; return stages that are to be done again."""
    from rlhf_core.adapters.run_records import bring_records as bring

    return bring(project, context)


def bar_for(policy: ModelRef, project: str) -> str | None:
    """Return the champion that a policy is held to; None where there is none."""
    from rlhf_core.stages.promote import bar_for as find

    return find(policy, project)


def judge_of(policy: str) -> str | None:
    """Return the judge of a policy's release."""
    from rlhf_core.adapters.registry import upstream_uris

    return upstream_uris(policy).get("judge")


def resolve_model(uri: str) -> ModelRef:
    """Registry URI or directory to a model whose weights lie on this machine."""
    from rlhf_core.adapters.registry import resolve_model as resolve

    runs = PipelineConfig.model_fields["runs"].default
    return resolve(uri, cache=STATE / "models", runs=runs)


def check_role(uri: str, roles: tuple[ModelRole, ...], why: str) -> None:
    """Refuse a model that was trained as something else."""
    from rlhf_core.adapters.registry import check_role as check

    check(uri, roles, why)


def check_server() -> None:
    """Fail in one line now rather than in a traceback after an hour of training."""
    from rlhf_core.adapters.tracking import check_server as check

    check()


def check_access(config: PipelineConfig, *, patience: float | None = None) -> None:
    """Refuse a run that MLflow would refuse later: no password, no permission, no place for files.

    Args:
        config: settings of the run.
        patience: seconds a lost server is waited for; None takes the setting.
    """
    from rlhf_core.adapters.access import check_access as check

    check(config.project, patience=patience)


def check_inputs(config: PipelineConfig) -> None:
    """Refuse raw files that do not exist and a base model without tokenizer or chat template."""
    from rlhf_core.stages.preflight import check_inputs as check

    check(config)


def places(directory: Path, model: "ModelRef") -> dict[str, str]:
    """Where a person looks after a run that ended with a model: pages, files, commands."""
    from rlhf_core.adapters.settings import load_settings, without_credentials

    settings = load_settings()
    mlflow = without_credentials(settings.mlflow_tracking_uri)
    found = {
        "MLflow": f"mlflow ui --backend-store-uri {mlflow}" if settings.embedded else mlflow,
        "lineage": f"rlhf lineage {model.uri}",
        "files": str(directory),
    }
    if settings.prefect_api_url:
        found["Prefect"] = without_credentials(settings.prefect_api_url).removesuffix("/api")
    return found


def promote_model(uri: str, reviewer: str, comment: str) -> "Promotion":
    """Apply the verdict recorded with a version; PROMOTE makes it champion, by the reviewer."""
    from rlhf_core.stages.promote import promote_model as promote

    return promote(uri, reviewer=reviewer, comment=comment)


def record_approval(
    uri: str, decision: Verdict, reviewer: str, comment: str, said_at: datetime | None
) -> tuple[Verdict, str]:
    """Write an answer on the model's version; return the one that counts, and who gave it."""
    from rlhf_core.adapters.approval import record_approval as record

    return record(uri, decision, reviewer=reviewer, comment=comment, said_at=said_at)


def ask_approval(uri: str) -> None:
    """Write on the model's version that a person is being asked."""
    from rlhf_core.adapters.approval import ask_approval as ask

    ask(uri)


def require_approval(uri: str, *, asked_for: bool) -> None:
    """Refuse a model that a person was asked about and did not approve."""
    from rlhf_core.adapters.approval import require_approval as require

    require(uri, asked_for=asked_for)


def keep_with_run(run_id: str, path: Path, folder: str = "") -> str | None:
    """Keep a file or folder with an MLflow run; return its address if a browser can open it."""
    from rlhf_core.adapters.tracking import keep_file

    return keep_file(run_id, path, folder)


def tracked(run_id: str) -> tuple[str, dict[str, float]]:
    """Return where a person looks at an MLflow run, and its latest metrics."""
    from rlhf_core.adapters.tracking import look_up_run

    return look_up_run(run_id)


def show_dataset(config: PipelineConfig, splits: DatasetSplits, context: RunContext) -> str | None:
    """Keep a dataset's Data Docs in MLflow; return where a browser finds them."""
    from rlhf_core.stages.versions.dataset_page import show_dataset

    return show_dataset(config, splits, context)


def bring_back(version: str) -> DatasetSplits:
    """Bring a published dataset version back into a folder of its own."""
    from rlhf_core.stages.versions.versions import bring_back as bring

    return bring(version)


def roll_back(project: str) -> "Rollback":
    """Move ``champion`` of the project's policy back to the version before it."""
    from rlhf_core.stages.promote import rollback_policy

    return rollback_policy(project)


def read_required_gates(path: Path) -> "RequiredGates":
    """Read the file that says which gates a project requires."""
    from rlhf_core.config.load import load_required_gates

    return load_required_gates(path)


def require_gates(project: str, gates: "RequiredGates", by: str) -> "Requirement":
    """Ask these gates of every run of a project from now on."""
    from rlhf_core.adapters.required_gates import require_gates as require

    return require(project, gates, by=by)


def requirement(project: str) -> "Requirement":
    """Return the gates a project requires, and who set them."""
    from rlhf_core.adapters.required_gates import requirement as find

    return find(project)


def trace_lineage(uri: str) -> "Lineage":
    """Everything a version was made from and what was decided about it."""
    from rlhf_core.adapters.lineage import trace_lineage as trace

    return trace(uri)


def sample_model(
    uri: str, prompt: str, *, count: int, temperature: float, max_new_tokens: int, seed: int
) -> list[str]:
    """Answer one prompt ``count`` times."""
    from rlhf_core.models import load_causal
    from rlhf_core.rollout.sample import sample_responses
    from rlhf_core.tokenization import load_tokenizer

    check_role(uri, ("sft", "policy"), "only they answer prompts")
    directory = resolve_model(uri).path
    responses = sample_responses(
        load_causal(directory, device="auto"),
        load_tokenizer(directory),
        [(Message(role="user", content=prompt),)] * count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    return [response.text for response in responses]


def write_report(directory: Path) -> Path:
    """Write the run's self-contained HTML page and say where it is."""
    from rlhf_core.stages.evaluation.report import write_report as write

    return write(directory)
