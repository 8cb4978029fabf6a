"""Every `rlhf` command of the README works as written, on smaller settings where it trains."""

import re
import shlex
from pathlib import Path

import pytest

from tests.end_to_end.conftest import small_settings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small_demo")]

ROOT = Path(__file__).parents[2]
README = "\n".join(
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/serving.md")
)
SECOND = "configs/demo-dpo.yaml"
"""What is promoted after the first run, so that there is something to roll back to."""
COMMANDS = sorted(
    {
        command.strip().removeprefix(".venv/bin/")
        for command in re.findall(r"(?:`|^)((?:\.venv/bin/)?rlhf [^`\n]+)", README, re.MULTILINE)
    },
    key=lambda command: (
        command.startswith("rlhf rollback"),
        command.startswith(f"rlhf run {SECOND}"),
        command,
    ),
)
"""Rolling back comes last: by then another run has been promoted, which has no reward model."""
TRAINS = ("run", "prepare", "sft", "reward", "policy", "evaluate")
FIRST = "rlhf run configs/demo.yaml"
"""What ``small_run`` is made by."""
AS_GOOD = (
    "{rule: not_inferior, margin: 0.49, min_samples: 20, slice_margin: null,"
    " because: {metric: policy/win_rate, at_least: 0.05, min_samples: 20}}"
)
"""So few steps beat no champion; they are as good as one."""
OF_SECOND = small_settings(without="policy.", promotion=AS_GOOD, **{"policy.num_epochs": "1"})
OF_A_NIGHT = ("configs/demo-rloo.yaml",)
"""Every part of it is tested at every change; the run as a whole takes as long as the demo's."""
NEEDS_MORE = {
    "--install-completion": "writes into the home of whoever runs it: covered by test_cli",
    "rlhf up": "starts servers that stay: covered by the tests of servers",
    "rlhf down": "ends what rlhf up started: covered by the tests of servers",
    "rlhf serve": "runs until it is ended: covered by test_serve",
    "rlhf export MODEL": "stands for the commands with a model",
    "rlhf lineage MODEL": "stands for the commands with a model",
    "rlhf rollback --to": "covered by test_release_state: needs another release",
    # What only a person's own data or a running server can answer.
    "configs/stories-hh.yaml": "covered by test_real_input",
    "--run-id ID": "covered by test_small_demo",
    "--set policy.kl_coef": "every training command here runs with --set",
    "rlhf rounds": "covered by test_rounds: needs a repository",
    "rlhf label listen": "covered by test_label_listener: runs until it is ended",
    "rlhf label pull": "covered by tests of labels: needs a repository",
    "rlhf init": "covered by test_new_project",
    "rlhf notify": "covered by test_notifications and test_served: needs a Prefect server",
    "rlhf data": "covered by tests of data versions: needs a repository",
    "data.version=": "covered by tests of data versions: needs a repository",
    "configs/demo-reward-hacking.yaml": "covered by test_shipped_variants",
}


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command,
            marks=[pytest.mark.nightly] if any(name in command for name in OF_A_NIGHT) else [],
        )
        for command in COMMANDS
    ],
)
def test_command_works_as_written(small_run, command):
    for part, reason in NEEDS_MORE.items():
        if part in command:
            pytest.skip(f"{part}: {reason}")
    if command == FIRST:
        assert small_run.read("first.json")["verdict"] == "PROMOTE"
        return
    stands_for = {"RUN": "first", "ID": "first", "...": "When does the castle open?"}
    if "COLLECTION" in command:
        stands_for["COLLECTION"] = collected(small_run)
    arguments = [stands_for.get(part, part) for part in shlex.split(command)[1:]]
    if arguments[0] in TRAINS and "--run-id" not in arguments:
        own = re.sub(r"\W+", "-", " ".join(arguments)).strip("-")
        arguments += ["--run-id", own]
        arguments += [] if arguments[0] in ("run", "prepare", "sft") else ["--new-run"]
    if arguments[0] in (*TRAINS, "collect"):
        arguments += small_settings(promotion=AS_GOOD) if SECOND not in arguments else OF_SECOND
    if arguments[0] == "rollback":
        promote_twice(small_run)
    (small_run.path / "prompts.txt").write_text("When does the castle open?\n")
    small_run.rlhf(*arguments)


def collected(work):
    """Return the name of a collection; it is made once."""
    work.rlhf("collect", "configs/demo.yaml", "--json", "collected.json", *small_settings())
    return work.read("collected.json")["collection"]["collection_id"]


def promote_twice(work):
    """Make sure that there is a champion before the champion."""
    previous = work.rlhf("lineage", "models:/rlhf-policy@previous-champion", check=None)
    if previous.returncode:
        work.rlhf("run", SECOND, "--run-id", "another", *OF_SECOND)
