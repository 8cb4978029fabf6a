"""Checkpoints: whole or not there, the last two kept, another run's refused."""

import logging
import os
import random
import subprocess
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import transformers as hf

from rlhf_core.config import OptimizerConfig
from rlhf_core.errors import CheckpointError, StorageError
from rlhf_core.models import save_model, weights_sha256
from rlhf_core.storage import folders
from rlhf_core.trainers import checkpoint as module
from rlhf_core.trainers.checkpoint import CheckpointStore
from rlhf_core.trainers.loop import Optimization
from rlhf_core.trainers.state import (
    load_model_tensors,
    load_optimizer_tensors,
    load_random,
    random_tensors,
    random_values,
    run_fingerprint,
)
from tests.disks import no_larger_files


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def save(store, step, fingerprint="f"):
    store.save(step, {"x": torch.tensor([float(step)])}, {"n": step}, fingerprint=fingerprint)


def test_nothing_saved_is_nothing_found(store):
    assert store.latest(fingerprint="f") is None


def test_the_newest_comes_back_and_two_are_kept(store):
    for step in (3, 20, 100):
        save(store, step)
    latest = store.latest(fingerprint="f")
    assert (latest.step, latest.values, latest.tensors["x"].item()) == (100, {"n": 100}, 100.0)
    assert [path.name for path in sorted(store.directory.iterdir())] == [
        "step-000000020",
        "step-000000100",
    ]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_a_resumed_run_does_not_hold_the_room_of_a_checkpoint_it_deletes(store):
    """Its optimiser's moments were the file, mapped: `du` saw nothing of it on a full disk."""
    weight = torch.nn.Parameter(torch.zeros(1 << 18))
    moments = {"exp_avg": torch.ones(1 << 18), "exp_avg_sq": torch.ones(1 << 18)}
    state = {"step": torch.tensor(1.0), **moments}
    store.save(1, {f"optimizer.0.{key}": state[key] for key in state}, {}, fingerprint="f")
    optimizer = torch.optim.AdamW([weight])
    latest = store.latest(fingerprint="f")
    load_optimizer_tensors(optimizer, latest.tensors)
    for step in (2, 3):
        save(store, step)
    assert optimizer.state[weight]["exp_avg"].sum() == 1 << 18
    assert latest.step == 1
    assert str(store.directory) not in Path("/proc/self/maps").read_text()


def test_a_checkpoint_of_many_tensors_is_not_opened_for_each(store, monkeypatch):
    """Opening reads all names: 3,000 tensors took 22 s for 0.2, and four times as many 390 s."""
    opened, real = [], module.safe_open
    store.save(1, {str(n): torch.tensor(n) for n in range(9)}, {}, fingerprint="f")
    monkeypatch.setattr(module, "safe_open", lambda *at: opened.append(at) or real(*at))
    tensors = store.latest(fingerprint="f").tensors
    assert {name: tensors[name].item() for name in tensors} == {str(n): n for n in range(9)}
    assert len(opened) == 1


@pytest.mark.parametrize("name", [module.TENSORS, module.VALUES, module.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_an_incomplete_checkpoint_is_noticed_and_the_one_before_used(store, name, damage, caplog):
    save(store, 1)
    save(store, 2)
    file = store.directory / "step-000000002" / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert store.latest(fingerprint="f").step == 1
    assert "incomplete" in caplog.text


def test_a_crash_while_writing_leaves_the_one_before(store, monkeypatch):
    save(store, 1)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "put_in_place", crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert store.latest(fingerprint="f").step == 1
    save(store, 2)
    assert not [path for path in store.directory.iterdir() if path.name.startswith(".")]


@contextmanager
def tiny_disk(directory):
    """A file system of 256 kB in memory."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a file system here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def small_files_only(directory):
    with no_larger_files(100_000):
        yield directory


FULL = {"tensors": torch.zeros(100_000)}, {"n": 2}
LONG = {"x": torch.zeros(1)}, {"n": "x" * 400_000}


@pytest.mark.parametrize(("tensors", "values"), [FULL, LONG], ids=["tensors", "values"])
@pytest.mark.parametrize("disk", [tiny_disk, small_files_only])
def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(tensors, values, disk, tmp_path):
    with disk(tmp_path / "disk") as directory:
        store = CheckpointStore(directory / "checkpoints")
        save(store, 1)
        with pytest.raises(CheckpointError) as raised:
            store.save(2, tensors, values, fingerprint="f")
        assert str(store.directory / "step-000000002") in str(raised.value)
        assert "\n" not in str(raised.value)
        assert [path.name for path in store.directory.iterdir()] == ["step-000000001"]
        assert store.latest(fingerprint="f").step == 1
        save(store, 2)  # there is room again: the partial folder is gone
        assert store.latest(fingerprint="f").step == 2


def test_a_model_that_does_not_fit_the_disk_leaves_what_was_there(tmp_path):
    class Tokenizer:
        def save_pretrained(self, directory):
            (directory / "tokenizer.json").write_text("{}")

    small, big = (
        hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=size, hidden_size=16, intermediate_size=16,
                num_hidden_layers=1, num_attention_heads=2,
            )
        )
        for size in (8, 8_000)
    )  # fmt: skip
    with small_files_only(tmp_path):
        digest = save_model(small, Tokenizer(), tmp_path / "model")
        with pytest.raises(
            StorageError, match="cannot be written: File too large; raise the limit"
        ):
            save_model(big, Tokenizer(), tmp_path / "model")
    assert weights_sha256(tmp_path / "model") == digest
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_runs_checkpoint_is_refused(store):
    save(store, 1, fingerprint="other")
    with pytest.raises(CheckpointError, match="another run"):
        store.latest(fingerprint="f")


def test_an_optimiser_goes_on_as_if_never_stopped(store):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        settings = OptimizerConfig(learning_rate=0.1, weight_decay=0.1)
        return model, Optimization(model, settings, total_steps=6)

    def step(model, optimization):
        generator = torch.Generator().manual_seed(optimization.step)
        loss = model(torch.randn(5, 4, generator=generator)).square().mean()
        loss.backward()
        optimization.apply(loss.item())

    model, optimization = make()
    for _ in range(3):
        step(model, optimization)
    store.save(3, optimization.tensors(), optimization.values(), fingerprint="f")
    for _ in range(3):
        step(model, optimization)
    other, resumed = make()
    resumed.load(store.latest(fingerprint="f"))
    for _ in range(3):
        step(other, resumed)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    with pytest.raises(CheckpointError, match="bias"):
        load_model_tensors(model, {"model.weight": model.weight})


def test_every_generator_is_restored(store):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    store.save(0, random_tensors(), random_values(), fingerprint="f")
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    saved = store.latest(fingerprint="f")
    load_random(saved.tensors, saved.values)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_a_resumed_run_computes_with_as_many_threads(monkeypatch, caplog):
    before = torch.get_num_threads()
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    try:
        torch.set_num_threads(3)
        tensors, values = random_tensors(), random_values()
        torch.set_num_threads(1)
        load_random(tensors, values)
        assert torch.get_num_threads() == 3
        load_random(tensors, {**values, "threads": 4})
        assert torch.get_num_threads() == 3
        assert "may differ in the last bits" in caplog.text
        load_random(tensors, {name: values[name] for name in ("python", "numpy")})  # of old builds
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_fingerprint_knows_settings_seed_data_and_weights():
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    settings = OptimizerConfig(learning_rate=0.1)
    base = run_fingerprint(settings, [model], [b"ab", b"c"], seed=0)
    assert base == run_fingerprint(settings, [model], [b"ab", b"c"], seed=0)
    changed = {
        run_fingerprint(OptimizerConfig(learning_rate=0.2), [model], [b"ab", b"c"], seed=0),
        run_fingerprint(settings, [other], [b"ab", b"c"], seed=0),
        run_fingerprint(settings, [model], [b"a", b"bc"], seed=0),
        run_fingerprint(settings, [model], [b"ab", b"c"], seed=1),
    }
    assert base not in changed
    assert len(changed) == 4


def test_files_are_synced_before_they_are_renamed(store, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, folders._replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), real_fsync(fd))[1])
    monkeypatch.setattr(
        folders,
        "_replace",
        lambda *paths: (events.append("rename"), real_replace(*paths))[1],
    )
    save(store, 1)
    assert events.index("rename") >= 4
    assert events[-1] == "sync"
