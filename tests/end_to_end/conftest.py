"""A working directory like a user's, and one finished run of the demo on smaller settings."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tests.flows.tiny import write_base
from tests.forked import Forked

ROOT = Path(__file__).parents[2]

ROWS = {
    "comparisons.jsonl": 600,
    "demonstrations.jsonl": 240,
    "prompts.jsonl": 240,
    "heldout_prompts.jsonl": 300,
}
"""Of the shipped files, in a workspace that has not the whole of them."""
SMALL = {
    "data.votes.num_resamples": "80",
    "data.gates": "[{metric: data/krippendorff_alpha, at_least: 0.1, min_samples: 100}]",
    "sft.num_epochs": "1",
    "sft.optimizer.learning_rate": "0.02",  # a model that knows nothing learns to end its answers
    "reward.num_epochs": "1",
    "policy.num_iterations": "4",
    "policy.rollout_batch_size": "16",
    "policy.num_epochs": "1",
    "policy.num_minibatches": "2",
    "policy.selection.num_prompts": "32",
    "evaluation.num_prompts": "32",
    "evaluation.num_resamples": "100",
    # So few rows and steps prove that every part works, not that the policy is better.
    "gates.sft": "[{metric: sft/heldout_nll, at_most: 9.0, min_samples: 20}]",
    "gates.reward": "[{metric: reward/heldout_accuracy, at_least: 0.05, min_samples: 20}]",
    "gates.policy": "[{metric: policy/win_rate, at_least: 0.05, min_samples: 20}]",
    "gates.reward_hacking": "[]",
}


def small_settings(*, without: str = "none", **more: str) -> list[str]:
    """Return SMALL as command-line arguments, but for those whose names begin with ``without``."""
    kept = {key: value for key, value in SMALL.items() if not key.startswith(without)}
    return [part for key, value in (kept | more).items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Workspace:
    """A folder with the repository's data and configs, and nothing else in it."""

    path: Path
    prefect_home: ClassVar[Path]
    """One for all: making the tables of Prefect's database takes longer than a small stage."""
    commands: ClassVar[Forked]

    def rlhf(
        self, *arguments: str, check: int | None = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command as a user would; fail with its output unless it exits with ``check``."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_"))
        }
        environment |= {"PREFECT_HOME": str(self.prefect_home), "COLUMNS": "160"}
        environment |= env or {}
        done = self.commands.run("rlhf", *arguments, cwd=self.path, env=environment)
        if check is not None:
            assert done.returncode == check, (
                f"rlhf {' '.join(arguments)} exited with {done.returncode}\n"
                f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            )
        return done

    def read(self, name: str) -> dict:
        """Return a JSON file of the workspace."""
        return json.loads((self.path / name).read_text())


def make_workspace(
    path: Path, *, rows: dict[str, int] | None = ROWS, pretrained: bool = False
) -> Workspace:
    """Link configs into ``path``, and put raw data and a base model beside them.

    Where it matters that everything works, and not how well, the first ``rows`` of each file will
    do (None: all), and a base model that knows nothing.
    """
    (path / "data").mkdir(parents=True)
    links = ["configs"]
    if pretrained:
        links.append("data/base")
    else:
        write_base(path / "data/base")
    if rows is None:
        links.append("data/raw")
    else:
        (path / "data/raw").mkdir()
        for name, number in rows.items():
            lines = (ROOT / "data/raw" / name).read_text().splitlines(keepends=True)[:number]
            (path / "data/raw" / name).write_text("".join(lines))
    for name in links:
        (path / name).symlink_to(ROOT / name)
    return Workspace(path)


@pytest.fixture(scope="session", autouse=True)
def commands(
    tmp_path_factory: pytest.TempPathFactory, forked: Forked, prefect_database: Path
) -> None:
    Workspace.prefect_home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, Workspace.prefect_home)
    Workspace.commands = forked


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "work")


@pytest.fixture
def whole_workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "work", rows=None, pretrained=True)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The demo, on smaller settings, from raw data to promotion; run id ``first``."""
    made = make_workspace(tmp_path_factory.mktemp("small") / "work")
    made.rlhf(
        "run", "configs/demo.yaml", "--run-id", "first", "--json", "first.json", *small_settings()
    )
    return made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference data and small real models, where this machine has them."""
    path = Path(os.environ.get("RLHF_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set RLHF_SHARED_DATA to its folder")
    return path
