"""A person's data is withdrawn: the next version lacks it, and what was made of it is named."""

import json
import sys
from pathlib import Path

import pytest

from rlhf_core.adapters.dvc_versions import prepared_md5
from rlhf_core.adapters.mlflow_client import mlflow_client
from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.schema import Withdrawal
from rlhf_core.stages.data_publish import publish
from rlhf_core.stages.data_withdraw import withdraw
from tests.stages.data_helpers import call, make_repository, rows, write

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("data_versions")]
RLHF = str(Path(sys.executable).parent / "rlhf")


@pytest.fixture
def root(tmp_path, mlflow_home):
    root = make_repository(tmp_path / "repository")
    publish(None, directory=root)
    batch = rows(range(60, 90))
    batch[0]["votes"] = [{"annotator": "mallory", "choice": "a"}]  # her vote alone
    batch[1]["votes"].append({"annotator": " mallory", "choice": "b"})
    batch[2]["comparison_id"] = "r-62"
    file = write(tmp_path / "of-may.jsonl", batch)
    publish(SourceConfig(path=file), directory=root)
    return root


def raw_text(root):
    return "".join(p.read_text() for p in (root / "data" / "raw").rglob("*.jsonl"))


def test_votes_go_and_versions_and_models_are_named(root):
    client = mlflow_client()
    client.create_registered_model("rlhf-sft")
    for tag in ("data-v1", "data-v2"):
        tags = {"rlhf.dataset_dvc_md5": prepared_md5(root, tag)}
        client.create_model_version("rlhf-sft", source=str(root), tags=tags)
    result = withdraw(Withdrawal(annotators=("mallory",)), directory=root)
    assert result.published.version.version == "data-v3"
    assert result.published.version.rows == 89
    assert result.changed_rows == {"data/raw/preferences/batch-0001.jsonl": 2}
    assert result.versions == ("data-v2",)
    assert result.models == {"data-v2": ("models:/rlhf-sft/2",)}
    assert "mallory" not in raw_text(root)
    assert "mallory" not in (result.published.directory / "annotators.csv").read_text()
    assert not call("git", "status", "--porcelain", cwd=root)
    with pytest.raises(DataError, match="no row there is of what is to be withdrawn"):
        withdraw(Withdrawal(annotators=("mallory",)), directory=root)


def test_rows_and_sources_go_by_the_command_line(root, tmp_path):
    said = call(RLHF, "data", "withdraw", "--row", "r-62", "--json", "out.json", cwd=root)
    assert "data-v2 still holds it; made from it: no registered model" in said
    result = json.loads((root / "out.json").read_text())
    assert result["published"]["version"]["rows"] == 89
    (root / "out.json").unlink()
    call(RLHF, "data", "withdraw", "--source", "of-may", cwd=root)
    assert not list((root / "data" / "raw" / "preferences").glob("batch-*"))
    again = publish(SourceConfig(path=write(tmp_path / "n.jsonl", rows([95]))), directory=root)
    assert (again.version.version, again.version.batch) == ("data-v5", "batch-0002.jsonl")


def test_a_container_that_cannot_be_rewritten_is_named(root):
    (root / "data" / "raw" / "more.csv").write_text("annotator,choice\nw1,a\nmallory,b\n")
    call("git", "add", "-A", cwd=root)
    call("git", "commit", "-qm", "more", cwd=root)
    with pytest.raises(DataError, match=r"data/raw/more\.csv, row \d+: holds .* JSON lines"):
        withdraw(Withdrawal(annotators=("mallory",)), directory=root)
