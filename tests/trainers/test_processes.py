"""Several processes train what one would: same numbers to rounding, whatever the trainer."""

import json
import signal
import uuid
from functools import cache

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from tests.trainers.ppo_toys import reward_directory
from tests.trainers.toys import toy_config

pytestmark = pytest.mark.xdist_group("processes")

NEAR = 1e-5
"""Relative to 1; float32 sums of another order."""

NEST = """
import json, os, signal, sys
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from safetensors.torch import save_file
from rlhf_core.config import ComputeConfig, OptimizerConfig
from rlhf_core.errors import CheckpointError, DivergedError, PeerLostError
from rlhf_core.trainers import checkpoint, ppo
from rlhf_core.trainers.checkpoint import CheckpointStore
from tests.trainers import ppo_toys, toys

Writer = checkpoint.HuggingFaceStorageWriter

class FullDisk(Writer):
    def write_data(self, plan, planner):
        raise OSError(28, "No space left on device")

class Halted(Exception):
    pass

class HaltingTracker(toys.ListTracker):
    def __init__(self, halt, full):
        super().__init__()
        self.halt, self.full = halt, full
    def log_metrics(self, metrics, step):
        super().log_metrics(metrics, step)
        if step == self.halt:
            raise Halted
        if step == self.full:
            checkpoint.HuggingFaceStorageWriter = FullDisk

update_value = ppo.update_value

def learn_from_nan(network, update):
    network.parameters[0].data.fill_(torch.nan)
    return update_value(network, update)

FAULTS = {
    "nan": learn_from_nan,
    "killed": lambda network, update: os.kill(os.getpid(), signal.SIGKILL),
}

def train(job, rank):
    shared = Path(job["work"])
    own = shared / f"rank-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    toys.save_model = ppo_toys.save_model = lambda model, tokenizer, folder: save_file(
        {name: weight.detach().clone() for name, weight in model.named_parameters()},
        folder.with_suffix(".safetensors"),
    )
    toys.CheckpointStore = ppo_toys.CheckpointStore = (
        lambda directory: CheckpointStore(shared / "checkpoints")
    )
    changes = {"optimizer": OptimizerConfig(**job["optimizer"]), **job["changes"]}
    passes = toys if job["trainer"] in toys.STAGES else ppo_toys
    changes = passes.MANY_PASSES | changes
    if job["compute"]:
        changes["compute"] = ComputeConfig(**job["compute"])
    changes["shard"] = job["shard"]
    ppo.update_value = FAULTS.get(job["fault"] if rank in job["faulty"] else None, update_value)
    tracker = HaltingTracker(job["halt"], job["full"] if rank == 1 else -1)
    try:
        if job["trainer"] in toys.STAGES:
            toys.train_stage(job["trainer"], Path(job["causal"]), own, tracker, **changes)
        else:
            changes |= getattr(ppo_toys, job["trainer"], {})
            ppo_toys.train_ppo(Path(job["causal"]), own, tracker, **changes)
    except Halted:
        pass
    except (CheckpointError, DivergedError, PeerLostError) as error:
        (own / "error.txt").write_text(str(error))
    (own / "rows.json").write_text(json.dumps(tracker.rows))

def work_as(rank, task):
    torch.set_num_threads(1)
    if task["world"] > 1:
        dist.init_process_group(
            "gloo", init_method="file://" + task["meeting"], rank=rank,
            world_size=task["world"], timeout=timedelta(seconds=60),
        )
    for job in task["jobs"]:
        train(job, rank)

import peft, peft.mapping, peft.tuners.lora, transformers.models.llama.modeling_llama
import transformers.generation.utils, torch.distributed.fsdp

for line in sys.stdin:
    task = json.loads(line)
    children = []
    for rank in range(task["world"]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work_as(rank, task)
                code = 0
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(code)
        children.append(child)
    print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
"""
"""Runs as a fork of what has imported torch; every rank is a fork of it."""

OPTIMIZER = {"learning_rate": 1e-3, "adam_eps": 1e-3, "warmup_fraction": 0.1}
"""Steps in proportion to gradients: else those near 0 are noise that Adam makes as large."""
ONCE = {"num_epochs": 1}
SHORT = {"num_iterations": 3, "checkpoint_every": 2}


LORA = {"lora": {"rank": 4}}


def job(trainer, causal, work, *, compute=None, shard="none", halt=-1, full=-1, fault=None,
        faulty=(), **changes):  # fmt: skip
    return {
        "trainer": trainer, "causal": str(causal), "work": str(work), "compute": compute,
        "shard": shard, "halt": halt, "full": full, "fault": fault, "faulty": faulty,
        "changes": changes, "optimizer": OPTIMIZER,
    }  # fmt: skip


@pytest.fixture(scope="module")
def launch(forked):
    """Run jobs one after the other, each by so many processes; all have to end well, or so."""
    nest = forked.python(NEST)

    def run(world, folder, *jobs, statuses=None):
        folder.mkdir(parents=True, exist_ok=True)
        task = {
            "world": world,
            "jobs": jobs,
            "meeting": str(folder / f"meeting-{uuid.uuid4()}"),
        }
        nest.stdin.write(json.dumps(task) + "\n")
        assert json.loads(nest.stdout.readline()) == (statuses or [0] * world)

    yield run
    nest.stdin.close()
    assert nest.wait() == 0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The toy model, with embeddings of its own for what it reads and writes, and with one."""
    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    for name, tied in (("untied", False), ("tied", True)):
        config = toy_config()
        config.tie_word_embeddings = tied
        hf.LlamaForCausalLM(config).save_pretrained(folder / name)
        reward_directory(folder / name)
    return folder


KINDS = {
    "sft": ("sft", "untied", {**ONCE, "batch_size": 6, "evaluate_every": 4}),
    "sft-tied": ("sft", "tied", {**ONCE, "batch_size": 9}),
    "sft-lora": ("sft", "untied", {**ONCE, "compute": LORA}),
    "reward": ("reward", "untied", {**ONCE, "use_soft_labels": True}),
    "dpo": ("dpo", "tied", {**ONCE, "evaluate_every": 5}),
    "kto": ("kto", "tied", {**ONCE, "batch_size": 3}),
    "ppo": ("PPO", "untied", {**SHORT, "kl_controller": "adaptive", "target_kl": 0.5}),
    "one-trunk": ("ONE_TRUNK", "tied", {**SHORT, "ptx_coef": 0.1, "scale_scores": True}),
    "grpo": ("GRPO", "untied", {**SHORT, "compute": LORA}),
}
"""Batches of 6 and 9 divide neither by 2 nor by 4: ranks get unequal shares, and at times none."""


DIVIDED = {
    "reward": {"compute": {"gradient_checkpointing": True}},
    "one-trunk": {"decode_tokens": 20},
}
"""What a kind does besides where layers are divided: the numbers are the same, the passes not."""


def at_every_change(*kinds):
    return [
        kind if kind in kinds else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS
    ]


BY_FOUR = ("sft", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("ppo", "grpo")))


@pytest.fixture(scope="module")
def trained(launch, models, tmp_path_factory):
    """Train a kind by so many processes, once: where its log and its weights are."""
    folder = tmp_path_factory.mktemp("worlds")

    @cache
    def train(kind, world, shard="none"):
        trainer, causal, changes = KINDS[kind]
        changes = changes | (DIVIDED.get(kind, {}) if shard == "layers" else {})
        work = folder / f"{world}-{shard}" / kind
        launch(world, folder, job(trainer, models / causal, work, shard=shard, **changes))
        return work

    return train


def rows(folder, rank=0):
    found = json.loads((folder / f"rank-{rank}" / "rows.json").read_text())
    return [
        (step, {key: metrics[key] for key in metrics if "second" not in key})
        for step, metrics in found
    ]


def weights(folder, rank=0):
    return load_file(folder / f"rank-{rank}" / "model.safetensors")


def assert_near(folder, expected):
    assert_rows_near(rows(folder), rows(expected))
    assert_same_weights(folder, expected)


def assert_rows_near(ours, theirs):
    for (step, found), (same, metrics) in zip(ours, theirs, strict=True):
        assert step == same
        assert found == pytest.approx(metrics, abs=NEAR, rel=1e-4, nan_ok=True), step


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_same_weights(folder, expected):
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    worst = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    assert max(worst.values()) < NEAR, worst


TIED = "sft-tied"
"""At every change by two processes that divide its layers."""


@pytest.mark.parametrize("kind", at_every_change(*(kind for kind in KINDS if kind != TIED)))
def test_two_processes_train_what_one_trains(kind, trained):
    assert_several_train_what_one_trains(kind, 2, trained)


@pytest.mark.parametrize("kind", BY_FOUR)
def test_four_processes_train_what_one_trains(kind, trained):
    assert_several_train_what_one_trains(kind, 4, trained)


@pytest.mark.parametrize("kind", at_every_change("sft-tied", "reward", "ppo"))
def test_divided_layers_train_what_one_process_trains(kind, trained):
    assert_several_train_what_one_trains(kind, 2, trained, "layers")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["sft", "sft-lora", "ppo"])
def test_layers_divided_by_four_train_what_one_process_trains(kind, trained):
    assert_several_train_what_one_trains(kind, 4, trained, "layers")


def assert_several_train_what_one_trains(kind, world, trained, shard="none"):
    found = trained(kind, world, shard)
    assert_near(found, trained(kind, 1))
    for rank in range(1, world):
        assert rows(found, rank) == rows(found)
        assert_same_bits(weights(found, rank), weights(found))


def test_two_ranks_with_a_row_each_are_one_process_bit_for_bit(launch, models, tmp_path):
    """A sum of two has one order: where nothing else is added up, nothing can differ."""
    rows_of_two = {"batch_size": 2, "micro_batch_tokens": 1, "num_epochs": 1}
    for world in (1, 2):
        work = tmp_path / str(world)
        launch(world, tmp_path, job("sft", models / "tied", work, **rows_of_two))
    assert_same_bits(weights(tmp_path / "2"), weights(tmp_path / "1"))


ALONE = {"micro_batch_tokens": 1, "decode_tokens": 1}
"""Each response is sampled, scored and learned from in passes of its own, whoever makes them."""
AT_ONCE = {
    "critic_warmup_iterations": 0,
    "num_iterations": 2,
    "rollout_batch_size": 8,
    "num_epochs": 1,
}


def test_policy_and_value_model_by_a_process_each_are_one_process_bit_for_bit(
    launch, models, tmp_path
):
    for world in (1, 2):
        changes = {**ALONE, **AT_ONCE, "ptx_coef": 0.1, "compute": LORA}
        launch(world, tmp_path, job("PPO", models / "untied", tmp_path / str(world), **changes))
    assert rows(tmp_path / "2", rank=0) == rows(tmp_path / "1")
    assert rows(tmp_path / "2", rank=1) == rows(tmp_path / "1")
    assert_same_bits(weights(tmp_path / "2"), weights(tmp_path / "1"))


def test_what_ends_one_team_ends_all(launch, models, tmp_path):
    """Ranks 0 and 1 train the policy, 2 and 3 the value model."""
    jobs = [
        job("PPO", models / "untied", tmp_path / "diverged", **AT_ONCE, fault="nan", faulty=(2, 3)),
        job("PPO", models / "untied", tmp_path / "killed", **AT_ONCE, fault="killed", faulty=(3,)),
    ]
    launch(4, tmp_path, *jobs, statuses=[0, 0, 0, signal.SIGKILL])
    for rank in range(4):
        said = (tmp_path / f"diverged/rank-{rank}/error.txt").read_text()
        assert said == "loss is nan at step 0; lower the learning rate"
        assert rows(tmp_path / "diverged", rank) == []
    for rank in range(3):
        said = (tmp_path / f"killed/rank-{rank}/error.txt").read_text()
        assert said.startswith("another process of the training is gone: ")


NIGHTLY = pytest.mark.nightly
WORLDS = {"one": (1, "none"), "two": (2, "none"), "four": (4, "none"),
          "two-divided": (2, "layers"), "four-divided": (4, "layers")}  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("two", "two"),
        ("two-divided", "one"),
        pytest.param("two", "one", marks=NIGHTLY),
        pytest.param("two-divided", "two-divided", marks=NIGHTLY),
        pytest.param("one", "two", marks=NIGHTLY),
        pytest.param("one", "two-divided", marks=NIGHTLY),
        pytest.param("two", "four", marks=NIGHTLY),
        pytest.param("two-divided", "four-divided", marks=NIGHTLY),
        pytest.param("two-divided", "two", marks=NIGHTLY),
    ],
)
def test_a_checkpoint_goes_on_with_any_number_of_processes(
    before, after, launch, models, trained, tmp_path
):
    kinds = ("sft", "ppo")
    for (world, shard), halt in ((WORLDS[before], 3), (WORLDS[after], -1)):
        jobs = []
        for name in kinds:
            trainer, causal, changes = KINDS[name]
            changes = {**changes, "checkpoint_every": 1, "shard": shard}
            jobs.append(job(trainer, models / causal, tmp_path / name, halt=halt, **changes))
        launch(world, tmp_path, *jobs)
    for name in kinds:
        assert_same_weights(tmp_path / name, trained(name, 1))
        found = rows(tmp_path / name)
        assert found[0][0] > 1, "it began again"
        assert_rows_near(found, rows(trained(name, 1))[-len(found) :])
        if before == after:
            assert found == rows(trained(name, *WORLDS[after]))[-len(found) :]
            assert_same_bits(weights(tmp_path / name), weights(trained(name, *WORLDS[after])))


def test_a_part_that_cannot_be_written_leaves_the_checkpoint_before(launch, models, tmp_path):
    work = tmp_path / "sft"
    changes = {**ONCE, "checkpoint_every": 2, "shard": "layers", "full": 3}
    launch(2, tmp_path, job("sft", models / "tied", work, **changes))
    for rank in (0, 1):
        said = (work / f"rank-{rank}/error.txt").read_text()
        assert "step-000000004: the checkpoint cannot be written: [Errno 28] No space left" in said
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["step-000000002"]
