import contextlib
import errno
import getpass
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from rlhf_core.adapters.registry import registry
from rlhf_core.adapters.registry.lineage import Lineage
from rlhf_core.errors import CheckpointError, DataError
from rlhf_core.schema import GateResult, PromotionDecision
from rlhf_core.stages import promote as promotion
from rlhf_core.stages import rollback
from rlhf_core.stages.promote import Promotion
from rlhf_flows.commands import local
from rlhf_flows.commands.cli import app, main
from rlhf_flows.commands.start import Terminated
from rlhf_flows.commands.tables import show_gates, show_line, show_lineage, show_table
from rlhf_flows.engine import events
from rlhf_flows.engine.runs.folder import open_run, settings_of_run
from rlhf_flows.engine.runs.locks import hold_stage


@pytest.fixture
def rlhf(stages, config_path, without_engine):
    """Run a command as typed; returns exit code, stdout, stderr."""

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def typed(rlhf, monkeypatch, capsys):
    """Run a command through the entry point; returns exit code and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, capsys.readouterr().err

    return run


def said(stderr):
    """What a command wrote besides its log of what it does."""
    return [line for line in stderr.splitlines() if line and " INFO " not in line]


def test_a_promoted_run_exits_0_and_shows_stages_decision_and_times(rlhf, config_path, tmp_path):
    done = rlhf("run", config_path, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    for expected in ("sft/quality", "0.65, 0.75", "decision: PROMOTE", "total", "mlflow ui"):
        assert expected in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "PROMOTE"


def test_a_table_that_goes_to_a_file_cuts_no_word_short(capsys):
    long_words = ("policy/length_controlled_win_rate", "0.5438 [0.4617, 0.6165], n = 300")
    table = Table("gate", "verdict", "measured", "rule")
    table.add_row(long_words[0], "HOLD", long_words[1], "lower bound >= 0.55 (95%, n >= 300)")
    show_table(table)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "HOLD" in line]
    assert all(words in line for words in long_words)


def test_a_gates_slice_is_shown_in_its_brackets_and_one_that_does_not_apply_as_such(capsys):
    gate = GateResult(
        gate="policy/win_rate [style=red]", verdict="PROMOTE", estimate=None, rule="r", reason="r"
    )
    decision = PromotionDecision.model_construct(results=(gate,))
    show_gates(decision)
    shown = capsys.readouterr().out
    assert "[style=red]" in shown
    assert "not applicable" in shown
    assert "n/a" in shown
    assert "PROMOTE" not in shown


def test_a_path_that_looks_like_markup_is_shown_as_it_is(capsys):
    named = dict.fromkeys(Lineage.model_fields, "x")
    path = "/srv/[/data]/:smile:"
    many = {"aliases": (), "git_dirty": False, "gates": {}, "upstream": {}, "lost": {}}
    many |= {"verdict": "", "reasons": ()}
    lineage = Lineage(**{**named, **many, "dataset_path": path})
    show_lineage(lineage)
    show_line(path)
    assert capsys.readouterr().out.count(path) == 2


def test_a_models_lineage_says_why_its_verdict_is_what_it_is(capsys):
    named = dict.fromkeys(Lineage.model_fields, "x")
    many = {"aliases": (), "git_dirty": False, "gates": {}, "upstream": {}, "lost": {}}
    many |= {"verdict": "HOLD", "reasons": ("HOLD: 2 gates want 80 samples.", "PROMOTE: well.")}
    show_lineage(Lineage(**{**named, **many}))
    shown = capsys.readouterr().out
    assert "HOLD: 2 gates want 80 samples." in shown
    assert "PROMOTE: well." in shown


def test_a_run_that_a_gate_stopped_exits_1_with_the_reason(rlhf, stages, config_path):
    stages.verdicts["reward"] = "HOLD"
    done = rlhf("run", config_path)
    assert done.exit_code == 1
    assert "decision: HOLD (by the gates of reward)" in done.stdout
    assert "reward/quality says HOLD" in done.stdout


def test_the_server_is_asked_before_anything_trains(rlhf, stages, config_path):
    rlhf("run", config_path)
    assert stages.calls[0] == "check_server"


@pytest.mark.parametrize("command", ["run", "prepare", "sft", "reward", "policy", "evaluate"])
def test_a_prefect_server_that_is_not_there_is_one_line_and_exit_2_and_nothing_is_made(
    typed, stages, config_path, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("rlhf_flows.engine.prefect_server.PAUSE_SECONDS", 60.0)
    code, stderr = typed(command, config_path, "--run-id", "one")
    assert code == 2
    (line,) = said(stderr)
    assert line.startswith("error: Prefect at http://127.0.0.1:9/api cannot be reached")
    assert not (tmp_path / "runs").exists()


def test_a_deliberate_error_is_one_line_and_exit_2(typed, stages, config_path, tmp_path):
    stages.failures["prepare"] = DataError("x.jsonl:3: not JSON")
    code, stderr = typed("run", config_path)
    assert code == 2
    assert said(stderr) == ["error: x.jsonl:3: not JSON"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("busy", [True, False])
def test_a_second_command_leaves_the_run_of_the_first_alone(
    typed, stages, settings, config_path, busy
):
    run = open_run(settings.config, "one")
    stages.failures["prepare"] = DataError("x.jsonl:3: not JSON")
    with hold_stage(run, "prepare") if busy else contextlib.nullcontext():
        code, stderr = typed("run", config_path, "--run-id", "one")
    assert code == 2
    assert ("another process" if busy else "not JSON") in stderr
    assert ("go on with" in stderr) != busy
    assert settings_of_run(run) == settings.config


def test_a_run_that_was_joined_while_it_began_is_not_taken_away(typed, stages, config_path):
    stages.failures["prepare"] = CheckpointError("being worked on by another process")
    typed("run", config_path, "--run-id", "one")
    assert (stages.directory / "runs/one/config.json").exists()


def test_a_failure_after_a_finished_stage_says_how_to_go_on(typed, stages, config_path):
    stages.failures["reward"] = DataError("no pairs")
    code, stderr = typed("run", config_path, "--set", "seed=1", "--run-id", "one")
    assert code == 2
    assert f"go on with: rlhf run {config_path} --set seed=1 --run-id one" in stderr


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_an_interrupted_run_says_how_to_go_on(typed, stages, config_path, stop, status):
    stages.failures["sft"] = stop
    code, stderr = typed("run", config_path, "--run-id", "one")
    assert code == status
    assert "stopped" in stderr
    assert f"go on with: rlhf run {config_path} --run-id one" in stderr


@pytest.fixture
def sent(monkeypatch):
    """Events that were sent to the Prefect server, which is configured."""
    found = []
    monkeypatch.setattr(events, "emit_event", lambda **event: found.append(event))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    return found


@pytest.mark.parametrize("verdict", ["PROMOTE", "HOLD"])
def test_promoting_by_hand_is_an_approval_and_told(rlhf, stages, monkeypatch, sent, verdict):
    uri, approved = "models:/rlhf-policy/3", []

    def promote(model, reviewer, comment):
        approved.append((model, reviewer, comment))
        return Promotion(
            model=uri,
            verdict=verdict,
            moved=verdict == "PROMOTE",
            champion=None,
            previous_champion=None,
            reasons=(),
        )

    monkeypatch.setattr(promotion, "promote_model", promote)
    done = rlhf("promote", "models:/rlhf-policy@candidate", "--reviewer", "the reviewer")
    assert done.exit_code == (0 if verdict == "PROMOTE" else 1)
    assert approved == [("models:/rlhf-policy@candidate", "the reviewer", "rlhf promote")]
    told = [(event["event"], event["payload"]["champion"]) for event in sent]
    assert told == ([("rlhf.promoted", uri)] if verdict == "PROMOTE" else [])
    rlhf("promote", uri, "--reviewer", "  ")
    assert approved[1] == (uri, getpass.getuser(), "rlhf promote")


def test_a_rollback_is_told_as_well(rlhf, stages, monkeypatch, sent):
    record = rollback.Rollback(
        was="models:/rlhf-policy/3", champion="models:/rlhf-policy/2", previous_champion=None
    )
    monkeypatch.setattr(rollback, "rollback_policy", lambda *_, **__: record)
    assert rlhf("rollback").exit_code == 0
    (event,) = sent
    assert event["resource"] == {"prefect.resource.id": "rlhf.model.rlhf-policy.2"}
    assert event["payload"]["champion"] == "models:/rlhf-policy/2"


def test_a_bug_shows_its_traceback(rlhf, stages, config_path):
    stages.failures["sft"] = ZeroDivisionError("bug")
    done = rlhf("run", config_path)
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [("run",), ("sample", "somewhere", "Hello")])
def test_a_full_disk_is_one_line_whoever_was_writing(
    stages, config_path, monkeypatch, capsys, arguments
):
    def fail(*arguments, **options):
        raise full

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "from", None, "runs/one/model")
    stages.failures["sft"] = full
    monkeypatch.setattr(registry, "resolve_model", fail)
    words = [*arguments, *([str(config_path)] if arguments == ("run",) else [])]
    monkeypatch.setattr(sys, "argv", ["rlhf", *words])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert error.startswith("error: runs/one/model cannot be written: No space left on device; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "missing.yaml"),
        ("run", "{config}", "--set", "nonsense"),
        ("run", "{config}", "--set", "policy.clip_epz=1"),
        ("run", "{config}", "--log-level", "loud"),
        ("unknown",),
    ],
)
def test_usage_and_settings_errors_exit_2(typed, config_path, arguments):
    code, stderr = typed(*(part.format(config=config_path) for part in arguments))
    assert code == 2
    assert "Traceback" not in stderr


def test_each_stage_is_its_own_command(rlhf, stages, config_path):
    judge = ("reward", "--role", "judge")
    for command in (("prepare",), ("sft",), ("reward",), judge, ("policy",), ("evaluate",)):
        done = rlhf(command[0], config_path, "--run-id", "one", *command[1:])
        assert done.exit_code == 0, done.output
    assert "run one; its page: rlhf report one\nnext: rlhf promote models:/" in done.stdout
    assert [call for call in stages.calls if call != "check_server"] == [
        "prepare", "sft", "reward", "judge", "policy", "evaluate",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["prepare", "sft"])
def test_a_stage_has_a_server_that_ends_with_the_command(
    rlhf, stages, config_path, monkeypatch, command
):
    """Prefect would start one of its own, which outlives a command that is killed."""
    entered = []

    @contextlib.contextmanager
    def server():
        entered.append(command in stages.calls)
        yield

    monkeypatch.setattr(local, "in_this_process", server)
    assert rlhf(command, config_path, "--run-id", "one").exit_code == 0
    assert entered == [False]
    assert command in stages.calls


def test_prepare_says_what_came_of_the_rows_and_how_far_they_agree(rlhf, stages, config_path):
    lines = rlhf("prepare", config_path).stdout.splitlines()
    assert "preferences: 1,200 rows, 1,190 kept; filtered out: tie 8, no_votes 2" in lines
    assert "Krippendorff's alpha of the votes trained on: 0.401 [0.390, 0.410]" in lines
    (careless,) = [line for line in lines if line.startswith("look careless: ")]
    assert careless.startswith("look careless: cyn (at_chance, too_fast); everybody: ")
    assert careless.endswith("annotators.csv")


def test_a_shell_completes_commands_after_installation(tmp_path):
    rlhf = shutil.which("rlhf", path=Path(sys.executable).parent)
    home = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", f"{rlhf} --install-completion; exit $?"], check=True, env=home)
    script = tmp_path / ".bash_completions" / "rlhf.sh"
    typing = f"source {script}; COMP_WORDS=(rlhf rollb); COMP_CWORD=1; _rlhf_completion rlhf"
    path = f"{Path(rlhf).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{typing}; echo ${{COMPREPLY[0]}}"],
        check=True, env=home | {"PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "rollback"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['rlhf', '--help']\n"
        "from rlhf_flows.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'transformers', 'pandas', 'great_expectations',"
        " 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["reward", "policy", "evaluate"])
def test_a_stage_that_goes_on_refuses_a_run_that_is_not_there(
    typed, rlhf, stages, settings, config_path, tmp_path, command
):
    open_run(settings.config, "20260131-101500-3fa2")
    code, stderr = typed(command, config_path, "--run-id", "20260131-101500-3fb2")
    assert code == 2
    (line,) = said(stderr)
    assert line.startswith(f"error: {tmp_path}/runs/20260131-101500-3fb2: no such run here")
    assert "did you mean 20260131-101500-3fa2?" in line
    assert "--new-run" in line
    assert command not in stages.calls
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["20260131-101500-3fa2"]
    rlhf("sft", config_path, "--run-id", "new")  # which may begin one
    for known in (("--run-id", "new"), ("--run-id", "other", "--new-run"), ()):
        done = rlhf("reward", config_path, "--sft", "models:/rlhf-sft/1", *known)
        assert "no such run" not in str(done.exception)
    assert (tmp_path / "runs/new").is_dir()


def test_what_to_type_next_repeats_every_option(typed, settings, config_path, monkeypatch):
    open_run(settings.config, "one")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_flows.stages.reward_stage", interrupted)
    given = ("--role", "judge", "--sft", "models:/x y/1", "--set", "seed=0",
             "--log-level", "error", "--json", "out.json")  # fmt: skip
    code, stderr = typed("reward", config_path, "--run-id", "one", *given)
    assert code == 130, stderr
    (line,) = (line for line in stderr.splitlines() if "go on with: " in line)
    words = shlex.split(line.partition("go on with: ")[2])
    assert words[:2] == ["rlhf", "reward"]
    assert {*words[2:]} == {str(config_path), "--run-id", "one", *given}
    for option in ("--role", "--sft", "--set", "--log-level", "--json", "--run-id"):
        value = (*given, "--run-id", "one")
        assert words[words.index(option) + 1] == value[value.index(option) + 1]


def test_a_command_that_is_stopped_before_its_run_begins_says_so(typed, config_path, monkeypatch):
    def stopped(*_):
        raise Terminated

    monkeypatch.setattr("rlhf_flows.engine.runs.folder.open_run", stopped)
    code, stderr = typed("run", config_path)
    assert code == 143
    assert " run started; " in stderr.splitlines()[0]
    assert said(stderr) == ["stopped"]


@pytest.mark.parametrize(
    ("stop", "status"),
    [("raise KeyboardInterrupt", 130), ("import os; os.kill(os.getpid(), 15)", 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interruption_at_start_up_shows_no_traceback(stop, status, tmp_path):
    """Ctrl-C is pressed while the command line is imported."""
    (tmp_path / "typer.py").write_text(f"{stop}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from rlhf_flows.commands.start import main; main()", "--help"],
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": f"{tmp_path}:."},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (status, "stopped")
