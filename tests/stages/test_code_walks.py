"""docs/code-walks.md names every file that is given the row, or the prompt: found by watching one.

``python -m tests.stages.test_code_walks`` prints them.
"""

import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from rlhf_core.models import save_model, scalar_from_causal
from rlhf_core.schema import ModelRef
from rlhf_core.stages import policy, reward
from rlhf_core.stages.models.renderers import model_renderer
from rlhf_core.stages.preparation import build
from rlhf_core.stages.prepare import prepare_data
from rlhf_core.stages.training.job import TrainingJob
from rlhf_core.stages.training.run import Followers
from rlhf_core.trainers import ppo
from rlhf_core.trainers import reward as reward_trainer
from tests.stages.conftest import BASE, lenient_config
from tests.stages.prepare_helpers import comparisons, make_config, write
from tests.trainers.toys import ListTracker

ROOT = Path(__file__).parents[2]
MARK = "zebra"
RECORDS = ("rlhf_core.schema", "rlhf_core.dataprep.sources.rows", "rlhf_core.tokenization")
"""Modules whose objects are rows and conversations, or what becomes of them."""


class Seen(BaseException):
    """The thing has arrived."""


def has_mark(value, depth=0):
    """Whether a text, or one in a row or a list of rows, is that of a marked row."""
    if isinstance(value, str | bytes):
        return (MARK if isinstance(value, str) else MARK.encode()) in value
    if depth > 5:
        return False
    if isinstance(value, list | tuple):
        return any(has_mark(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return any(has_mark(item, depth + 1) for item in value.values())
    if type(value).__module__.startswith(RECORDS):
        names = getattr(value, "__dict__", None) or getattr(value, "__slots__", ())
        return any(has_mark(getattr(value, name, None), depth + 1) for name in names)
    return False


def is_tensor(value, depth=0):
    """Whether it is a tensor, a list or an object of ours with some: of the rows of one batch."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, list | tuple):
        return depth < 2 and any(is_tensor(item, depth + 1) for item in value[:3])
    ours = type(value).__module__.startswith("rlhf_core")
    if not ours or isinstance(value, type | torch.nn.Module):
        return False
    names = getattr(value, "__dict__", None) or getattr(value, "__slots__", ())
    return any(isinstance(getattr(value, name, None), torch.Tensor) for name in names)


class Watch:
    """Collects our files with a function that is given, or returns, what ``holds`` finds."""

    def __init__(self):
        self.files, self.holds, self._known = set(), has_mark, set()

    def _look(self, frame, event, result):
        code = frame.f_code
        name = code.co_filename.removeprefix(f"{ROOT}/")
        if event not in ("call", "return") or not name.startswith("rlhf_core/"):
            return
        if name in self.files:
            return
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [frame.f_locals.get(arg) for arg in given] if event == "call" else [result]
        if any(map(self.holds, values)):
            self.files.add(name)

    @contextmanager
    def watching(self):
        sys.setprofile(self._look)
        try:
            with suppress(Seen):
                yield
        finally:
            sys.setprofile(None)


def watch_row(home, patch):
    """Prepare marked rows and take one step of a reward model on them."""
    watch, rows = Watch(), comparisons(120)
    for row in rows[40:60]:
        row["prompt"] = f"{MARK} {row['prompt']}"
    write(home / "pairs.jsonl", rows)
    patch.setattr(build, "draw_pictures", lambda data, splits, folder: folder.mkdir())
    with watch.watching():
        splits = prepare_data(make_config(home))
    step = reward_trainer.accumulate_pairs

    def one_step(*arguments, **options):
        watch.holds = is_tensor
        step(*arguments, **options)
        raise Seen

    patch.setattr(reward_trainer, "accumulate_pairs", one_step)
    with watch.watching():
        reward.fit(job(home, "reward", splits), Followers(ListTracker()))
    return watch.files


def watch_prompt(home, patch):
    """Sample one batch of answers to marked prompts and learn from it."""
    watch, rows = Watch(), comparisons(120)
    for row in rows:
        row["prompt"] = f"{MARK} {row['prompt']}"
    write(home / "pairs.jsonl", rows)
    patch.setattr(build, "draw_pictures", lambda data, splits, folder: folder.mkdir())
    splits = prepare_data(make_config(home))
    scorer = home / "scorer"
    save_model(
        scalar_from_causal(BASE, seed=1, device="cpu"), model_renderer(BASE).tokenizer, scorer
    )
    collect, learn = ppo.collect_rollout, ppo.learn

    def collecting(*arguments, **options):
        watch.holds = is_tensor
        return collect(*arguments, **options)

    def learning(*arguments, **options):
        learn(*arguments, **options)
        raise Seen

    patch.setattr(ppo, "collect_rollout", collecting)
    patch.setattr(ppo, "learn", learning)
    with watch.watching():
        policy.fit(
            job(home, "policy", splits, reward=ref(scorer, "scalar")), Followers(ListTracker())
        )
    return watch.files


def ref(path, kind):
    return ModelRef(
        name="a", version="1", uri="models:/a/1", path=path, sha256="0" * 64, kind=kind, run_id="r"
    )


def job(home, role, splits, **models):
    folder = home / role
    folder.mkdir()
    return TrainingJob(
        role=role, config=lenient_config(), splits=splits, directory=folder,
        checkpoints=folder / "checkpoints", sft=ref(BASE, "causal"), **models,
    )  # fmt: skip


WALKS = {
    "A preference row to the reward model's loss": watch_row,
    "A prompt to a PPO update": watch_prompt,
}


@pytest.mark.nightly  # at every change those that are named are there, and called
@pytest.mark.parametrize("title", WALKS)
def test_every_file_that_is_given_the_thing_is_named(title, tmp_path, monkeypatch):
    text = (ROOT / "docs/code-walks.md").read_text(encoding="utf-8")
    walk = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(rlhf_core/[\w/]+\.py)`", walk))
    found = WALKS[title](tmp_path, monkeypatch)
    assert found - named == set()
    assert f" {len(named)} files in all" in walk


if __name__ == "__main__":
    import tempfile

    for title, watch in WALKS.items():
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            sys.stdout.write("\n  ".join([title, *sorted(watch(Path(folder), patch))]) + "\n")
