"""A small dataset, and the shipped base model in every role, registered in a real MLflow."""

import contextlib
import functools
import hashlib
import shutil
import socket
from pathlib import Path

import pytest

from rlhf_core.config import DistributedConfig, PipelineConfig
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    RunContext,
    StageResult,
)
from rlhf_core.stages.preparation import build
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.storage.records import read_records, write_records
from tests.registries import copy_home, copy_registry, registry_in
from tests.stages.prepare_helpers import comparisons, make_config, write

BASE = Path(__file__).parents[2] / "data" / "base"
RUN = "20260101-000000-abcd"
ROLES = ("sft", "policy", "reward", "judge")
NUM_ROWS = 12
STYLES = ("terse", "polite")
PLACES = ("library", "museum", "pool", "zoo", "market", "theatre", "harbour", "tower", "park")


RATER = """
def rate(prompt, response):
    return {"score": -float(len(response)), "correctness": float("nine" in response)}
"""


@pytest.fixture
def with_pictures():
    """The test's datasets have their pictures."""


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Pictures are a fifth of a small preparation; ``prepared`` and who asks for them has them."""
    if "with_pictures" not in request.fixturenames:
        monkeypatch.setattr(build, "draw_pictures", lambda data, splits, folder: folder.mkdir())


@pytest.fixture
def stage_config(tmp_path, monkeypatch):
    return config_with_rater(tmp_path, monkeypatch)


def config_with_rater(home, patch):
    """Settings as ``lenient_config`` makes them, and the rater that they name."""
    (home / "house_rater.py").write_text(RATER)
    patch.syspath_prepend(home)
    patch.setenv("RLHF_ALLOWED_FUNCTIONS", "house_rater:rate")
    return lenient_config


def lenient_config(**gates) -> PipelineConfig:
    """Gates that pass whatever is measured; a test replaces those it is about."""
    lenient = {
        "sft": [{"metric": "sft/heldout_nll", "at_most": 99.0, "min_samples": 5}],
        "reward": [{"metric": "reward/heldout_accuracy", "at_least": 1e-9, "min_samples": 5}],
        "policy": [{"metric": "policy/win_rate", "at_least": 1e-9, "min_samples": 5}],
        "reward_hacking": [],
    }
    return PipelineConfig.model_validate(
        {
            "model": {"base": str(BASE), "max_length": 192},
            "data": {"preferences": {"path": "unused.jsonl"}},
            "policy": {"algorithm": "ppo", "max_new_tokens": 16},
            "evaluation": {"num_resamples": 100, "rater": "house_rater:rate"},
            "gates": {**lenient, **gates},
        }
    )


@pytest.fixture
def stage_context(tmp_path) -> RunContext:
    return context_in(tmp_path)


def context_in(home: Path, run_id: str = RUN) -> RunContext:
    return RunContext(run_id=run_id, directory=home / "runs" / "one")


def question(index: int) -> tuple[Message, ...]:
    place = PLACES[index % len(PLACES)]
    return (Message(role="user", content=f"When does the {place} number {index} open?"),)


@pytest.fixture
def small_splits(tmp_path) -> DatasetSplits:
    return splits_in(tmp_path / "prepared")


def splits_in(folder: Path) -> DatasetSplits:
    demonstrations = [
        Demonstration(
            demonstration_id=f"d{i}", prompt=question(i), response=f"It opens at {i % 12 + 1}."
        )
        for i in range(NUM_ROWS)
    ]
    pairs = [
        PreferencePair(
            comparison_id=f"c{i}",
            prompt=question(i),
            chosen="It opens at nine, every day of the week." if i % 3 else "It opens at nine.",
            rejected="No idea." if i % 3 else "What a brilliant question! I am not sure at all.",
            agreement=1.0,
        )
        for i in range(NUM_ROWS)
    ]
    prompts = [
        Prompt(prompt_id=f"p{i}", prompt=question(i), tags={"style": STYLES[i % 2]})
        for i in range(NUM_ROWS)
    ]
    rows = {"demonstrations": demonstrations, "prompts": prompts}
    files = {
        name: _written(folder / f"{name}.jsonl", rows.get(name.split("_")[0], pairs))
        for name, field in DatasetSplits.model_fields.items()
        if field.annotation is DatasetRef
    }
    return DatasetSplits(
        directory=folder, sha256="d" * 64, dvc_md5="e" * 32 + ".dir", git_revision=None,
        report=folder / "report.json", **files,
    )  # fmt: skip


def _written(path: Path, records) -> DatasetRef:
    count = write_records(path, records)
    assert read_records(path, type(records[0])) == records
    data = path.read_bytes()
    return DatasetRef(
        path=path, sha256=hashlib.sha256(data).hexdigest(), num_rows=count,
        dvc_md5=hashlib.md5(data).hexdigest(), git_revision=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """The base model as SFT and as policy (weights slightly moved); two heads on its trunk."""
    import torch

    from rlhf_core.models import load_causal, save_model, scalar_from_causal
    from rlhf_core.stages.models.renderers import model_renderer

    tokenizer = model_renderer(BASE).tokenizer
    moved = load_causal(BASE)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=noise))
    models = {
        "sft": load_causal(BASE),
        "policy": moved,
        "reward": scalar_from_causal(BASE, seed=1),
        "judge": scalar_from_causal(BASE, seed=2),
    }
    folder = tmp_path_factory.mktemp("models")
    return {
        role: (folder / role, save_model(model, tokenizer, folder / role))
        for role, model in models.items()
    }


def judged(config, splits, models, context):
    """Compare the policy with SFT, and with the champion where one is among the models."""
    from rlhf_core.stages.evaluate import evaluate_policy

    return evaluate_policy(config, splits, context=context, **{"champion": None, **models})


def register_models(folders, context, splits):
    """Register a folder for every role, each made with the registered SFT model."""
    from rlhf_core.adapters.registry.registry import register_model
    from rlhf_core.adapters.tracking.tracking import open_run, stage_inputs

    models = {}
    for role, (folder, sha256) in folders.items():
        upstream = {"sft": models["sft"]} if models else {}
        inputs = stage_inputs(splits, **upstream)
        with open_run(lenient_config(), context, role, inputs=inputs) as run:
            models[role] = register_model(
                run,
                directory=folder,
                name=f"rlhf-{role}",
                kind="causal" if role in ("sft", "policy") else "scalar",
                sha256=sha256,
                tags={},
            )
    return models


@pytest.fixture
def register_all(mlflow_home, small_splits):
    """Register folders by role in the test's own registry."""

    def register(folders, run_id=RUN, splits=small_splits):
        return register_models(folders, context_in(mlflow_home, run_id), splits)

    return register


@pytest.fixture(scope="session")
def registered_homes(tmp_path_factory, fresh_database, saved_models):
    """Working directories with the saved models in a registry, each made when first wanted."""

    @functools.cache
    def home_of(roles, run_id):
        home = tmp_path_factory.mktemp("registered")
        folders = {role: saved_models[role] for role in roles}
        with registry_in(home, fresh_database):
            context, splits = context_in(home, run_id), splits_in(home / "prepared")
            return home, register_models(folders, context, splits)

    return home_of


@pytest.fixture
def registered(mlflow_home, registered_homes):
    """Find saved models registered, in a test's own copy: to register one takes half a second."""

    def find(roles=ROLES, run_id=RUN):
        home, models = registered_homes(roles, run_id)
        copy_registry(home, mlflow_home)
        return dict(models)

    return find


@pytest.fixture
def four_models(registered):
    return registered()


@pytest.fixture(scope="session")
def proven_home(tmp_path_factory, fresh_database, registered_homes):
    """A working directory in which all models but the policy passed their gates; the models."""
    from rlhf_core.stages.evaluate import evaluate_reward, evaluate_sft

    home, (before, models) = tmp_path_factory.mktemp("proven"), registered_homes(ROLES, RUN)
    config, splits = lenient_config(), splits_in(home / "prepared")
    with registry_in(home, fresh_database):
        copy_registry(before, home)
        evaluate_sft(config, splits, models["sft"], context_in(home))
        for role in ("reward", "judge"):
            evaluate_reward(config, splits, models[role], context_in(home), role=role)
    return home, models


@pytest.fixture
def proven_models(mlflow_home, proven_home):
    """The four models, with verdicts of all but the policy by the gates of ``lenient_config``."""
    home, models = proven_home
    copy_home(home, mlflow_home)
    return dict(models)


@pytest.fixture(scope="session")
def evaluated_home(tmp_path_factory, fresh_database, proven_home):
    """A working directory in which the policy is evaluated as well; the models, the result."""
    from rlhf_core.stages.evaluate import evaluate_policy

    home, (before, models) = tmp_path_factory.mktemp("evaluated"), proven_home
    splits = splits_in(home / "prepared")
    with registry_in(home, fresh_database), pytest.MonkeyPatch.context() as patch:
        copy_home(before, home)
        config, context = config_with_rater(home, patch)(), context_in(home)
        result = evaluate_policy(config, splits, context=context, champion=None, **models)
    return home, models, result


@pytest.fixture
def evaluated(mlflow_home, evaluated_home):
    """The four models, all with verdicts, and the result of the policy's evaluation."""
    home, models, result = evaluated_home
    copy_home(home, mlflow_home)
    text = result.model_dump_json().replace(str(home), str(mlflow_home))
    return dict(models), StageResult.model_validate_json(text)


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory):
    """A working directory with raw comparisons, and the dataset prepared from them there."""
    home = tmp_path_factory.mktemp("dataset")
    with contextlib.chdir(home):
        write(Path("pairs.jsonl"), comparisons())
        return home, prepare_data(make_config(Path()))


@pytest.fixture
def prepared(tmp_path, monkeypatch, prepared_home):
    """The same of the test's own: settings by paths from there, and the dataset."""
    home, splits = prepared_home
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return make_config(Path()), splits


@pytest.fixture
def endpoint():
    """A free port to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def as_node(endpoint):
    """Settings of one of several nodes on this machine."""

    def make(node_rank=0, nnodes=2, **changes):
        given = {"processes": nnodes, "nnodes": nnodes, "node_rank": node_rank}
        return DistributedConfig(**{**given, "rdzv_endpoint": endpoint, **changes})

    return make
