"""Bad input: one clear line, exit code 2, nothing half-written."""

import json
import shutil
import socket

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.conftest import small_settings

DEMO = "configs/demo.yaml"

pytestmark = pytest.mark.xdist_group("small_demo")


@pytest.fixture
def refused(workspace):
    """Run a command that must be refused; return its one line of explanation."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> str:
        before = sorted(path for path in workspace.path.rglob("*") if path.is_file())
        done = workspace.rlhf(*arguments, check=2, env=env)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        after = sorted(path for path in workspace.path.rglob("*") if path.is_file())
        ours = [path for path in after if path not in before and path.suffix == ".safetensors"]
        assert not ours
        assert not (workspace.path / "data" / "prepared").exists()
        assert not list((workspace.path / "runs").glob("*")), "a run that never began was left"
        assert not [path for path in after if path.suffix == ".tmp"]
        return lines[0]

    return run


def test_an_unknown_key_is_named_with_its_source_and_path(refused):
    line = refused("run", DEMO, "--set", "policy.clip_epz=0.1")
    assert "--set policy.clip_epz=0.1" in line
    assert "policy.clip_epz" in line


def test_a_broken_line_is_filtered_out_by_its_number_and_stops_nothing(workspace):
    raw = (workspace.path / "data/raw/comparisons.jsonl").read_text().splitlines()
    raw[41] = raw[41][:50]
    broken = workspace.path / "broken.jsonl"
    broken.write_text("\n".join(raw))
    settings = small_settings(**{"data.preferences.path": str(broken)})
    done = workspace.rlhf("prepare", DEMO, *settings)
    assert "broken_row 1" in done.stdout
    rows = pq.read_table(workspace.path / "data/prepared/quarantine.parquet").to_pylist()
    [row] = [row for row in rows if row["reason"] == "broken_row"]
    assert (row["source"], row["line"]) == ("broken", 42)


def test_a_missing_column_is_named(refused, workspace):
    rows = (workspace.path / "data/raw/comparisons.jsonl").read_text().splitlines()[:300]
    path = workspace.path / "no_b.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({k: v for k, v in json.loads(row).items() if k != "response_b"})
            for row in rows
        )
    )
    assert "response_b" in refused("run", DEMO, "--set", f"data.preferences.path={path}")


def test_no_rows_left_after_validation_is_said(refused, workspace):
    rows = (workspace.path / "data/raw/comparisons.jsonl").read_text().splitlines()[:300]
    path = workspace.path / "ties.jsonl"
    tied = []
    for row in rows:
        record = json.loads(row)
        record["votes"] = [
            {"annotator": "x", "choice": "a"},
            {"annotator": "y", "choice": "b"},
        ]
        tied.append(json.dumps(record))
    path.write_text("\n".join(tied))
    line = refused(
        "run", DEMO, "--set", f"data.preferences.path={path}", "--set", "data.min_alpha=null"
    )
    assert "no rows left" in line


def test_a_base_model_without_tokenizer_is_refused(refused, workspace):
    base = workspace.path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(workspace.path / "data/base" / name, base / name)
    line = refused("run", DEMO, "--set", f"model.base={base}")
    assert "no tokenizer" in line


def test_a_missing_chat_template_is_refused(refused, workspace):
    base = workspace.path / "base"
    shutil.copytree(workspace.path / "data/base", base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    line = refused("run", DEMO, "--set", f"model.base={base}")
    assert "model.chat_template" in line


def test_an_mlflow_server_that_does_not_answer_is_said_at_once(refused):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = refused("run", DEMO, env={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
    assert f"127.0.0.1:{port}" in line
