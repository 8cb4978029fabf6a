"""A person's data is withdrawn: the next version lacks it, and what was made of it is named."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlhf_core.adapters.datasets.dvc_versions import prepared_md5
from rlhf_core.adapters.tracking.mlflow_client import mlflow_client
from rlhf_core.config import SourceConfig
from rlhf_core.errors import DataError
from rlhf_core.schema import Withdrawal
from rlhf_core.stages.versions.publish import publish
from rlhf_core.stages.versions.withdraw import Removal, withdraw
from tests.stages.data_helpers import CONFIG, DVC, call, dvc, make_repository, rows, write

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("data_versions")]


@pytest.fixture(scope="module")
def published(tmp_path_factory, forked_tools):
    """Two versions, the second with a batch of May."""
    folder = tmp_path_factory.mktemp("published")
    root = make_repository(folder / "repository")
    publish(None, directory=root)
    batch = rows(range(60, 90))
    batch[0]["votes"] = [{"annotator": "mallory", "choice": "a"}]  # her vote alone
    batch[1]["votes"].append({"annotator": " mallory", "choice": "b"})
    batch[2]["comparison_id"] = "r-62"
    file = write(folder / "of-may.jsonl", batch)
    publish(SourceConfig(path=file), directory=root)
    return folder


@pytest.fixture
def root(tmp_path, mlflow_home, published):
    """The same as a folder of the test's own."""
    shutil.copytree(published, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "repository"


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
    again = withdraw(Withdrawal(annotators=("mallory",)), directory=root)
    assert (again.published, again.changed_rows) == (None, {})
    assert (again.versions, again.models) == (result.versions, result.models)
    with pytest.raises(DataError, match="no row there, nor in any version, is of what is to be"):
        withdraw(Withdrawal(annotators=("nobody",)), directory=root)


def test_rows_and_sources_go_by_the_command_line(root, tmp_path, forked_tools):
    said = forked_tools.rlhf("data", "withdraw", "--row", "r-62", "--json", "out.json", cwd=root)
    assert "data-v2 still holds it; made from it: no registered model" in said
    result = json.loads((root / "out.json").read_text())
    assert result["published"]["version"]["rows"] == 89
    (root / "out.json").unlink()
    forked_tools.rlhf("data", "withdraw", "--source", "of-may", cwd=root)
    assert not list((root / "data" / "raw" / "preferences").glob("batch-*"))
    again = publish(SourceConfig(path=write(tmp_path / "n.jsonl", rows([95]))), directory=root)
    assert (again.version.version, again.version.batch) == ("data-v5", "batch-0002.jsonl")


def test_every_kind_of_file_is_rewritten_and_a_repeat_names_what_held_it(root, forked_tools):
    raw = root / "data" / "raw"
    votes = [{"annotator": name, "vote": "a", "n": n} for n, name in enumerate(["w1", "mallory"])]
    pq.write_table(pa.Table.from_pylist(votes), raw / "more.parquet")
    (raw / "more.csv").write_text("annotator,choice\nw1,a\nmallory,b\n")
    dvc("add", "-q", "data/raw/more.parquet", cwd=root)
    call("git", "add", "-A", cwd=root)
    call("git", "commit", "-qm", "more", cwd=root)
    publish(None, directory=root)
    result = withdraw(Withdrawal(annotators=("mallory",)), directory=root)
    assert result.changed_rows == {
        "data/raw/more.csv": 1,
        "data/raw/more.parquet": 1,
        "data/raw/preferences/batch-0001.jsonl": 2,
    }
    assert result.versions == ("data-v2", "data-v3")
    assert (raw / "more.csv").read_text() == "annotator,choice\nw1,a\n"
    assert pq.read_table(raw / "more.parquet").to_pylist() == votes[:1]
    assert not call("git", "status", "--porcelain", cwd=root)
    said = forked_tools.rlhf("data", "withdraw", "--annotator", "mallory", cwd=root)
    assert "no row holds it any more; nothing was published" in said
    assert "data-v3 still holds it" in said

    # An edit by hand, published by the same command.
    batch = raw / "preferences" / "batch-0001.jsonl"
    batch.write_text("".join(line for line in batch.open() if "r-62" not in line))
    dvc("add", "-q", str(batch.relative_to(root)), cwd=root)
    call("git", "commit", "-qam", "by hand", cwd=root)
    result = withdraw(Withdrawal(rows=("r-62",)), directory=root)
    assert result.published.version.version == "data-v5"
    assert (result.changed_rows, result.versions) == ({}, ("data-v2", "data-v3", "data-v4"))


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_settings_whose_paths_start_at_their_file_are_known_in_a_clone(
    tmp_path, monkeypatch, place
):
    """As `rlhf init` writes them: nobody was found under columns of the file's own names."""
    clone = tmp_path / "clone"
    asked = {"question": "Why?", "answer_a": "So.", "answer_b": "No.", "better": "a"}
    file = write(clone / "data/raw/own.jsonl", [{**asked, "rater": who} for who in ("eve", "bob")])
    columns = {"prompt": "question", "response_a": "answer_a", "response_b": "answer_b"}
    columns |= {"annotator": "rater", "choice": "better"}
    settings = yaml.safe_load(CONFIG)
    settings["data"]["preferences"] = {
        "path": "data/raw/own.jsonl",
        "format": "flat",
        "columns": columns,
    }
    (clone / "own.yaml").write_text(yaml.safe_dump({"root": ".", **settings}))
    (clone / "dvc.yaml").write_text(DVC.replace("configs/small.yaml", "own.yaml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / place)
    assert Removal(Withdrawal(annotators=("eve",))).apply(clone) == ["data/raw/own.jsonl"]
    assert [json.loads(line)["rater"] for line in file.open()] == ["bob"]


def test_labelled_responses_go_with_all_their_ratings(tmp_path):
    answer = {"id": "chatcmpl-1", "index": 0, "prompt": "Q?", "completion": "A.", "label": None}
    kept = [answer, {**answer, "id": "chatcmpl-2"}, {**answer, "label": True, "rated": 5}]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert Removal(Withdrawal(rows=("chatcmpl-1",))).changes(path, None) == {1: None, 3: None}
    assert Removal(Withdrawal(rows=("kept:2",))).changes(path, None) == {2: None}
    own = [{"uid": "x", "rater": "kim", **answer}, {"uid": "y", "rater": "lee", **answer}]
    path.write_text("".join(json.dumps(row) + "\n" for row in own))
    source = SourceConfig(path=path, format="flat", columns={"annotator": "rater"})
    assert Removal(Withdrawal(annotators=("lee",))).changes(path, source) == {2: None}


def test_a_person_goes_from_files_that_a_folder_passes_over_too(tmp_path, caplog):
    """Whoever names one of them as a source has it read; a hidden copy is a copy."""
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    names = ("state.json", ".votes.json", "._x.csv", "~$y.csv")
    for name in names:
        (raw / name).write_text("annotator,choice\nann,a\nmallory,b\n")
        if name.endswith(".json"):
            write(raw / name, [{"annotator": "ann"}, {"annotator": "mallory"}])
    (raw / "._z.parquet").write_bytes(b"\x00\x05\x16\x07")
    (raw / "empty.json").touch()
    removal = Removal(Withdrawal(annotators=("mallory",)))
    changed = removal.apply(tmp_path)
    assert changed == sorted(f"data/raw/{name}" for name in names)
    assert not any(b"mallory" in file.read_bytes() for file in raw.iterdir())
    assert all(b"ann" in (raw / name).read_bytes() for name in names)
    assert "._z.parquet: not looked into, for it cannot be read" in caplog.text
    assert "empty.json: not" not in caplog.text
    (raw / "z.parquet").write_bytes(b"\x00\x05\x16\x07")
    with pytest.raises(DataError, match=r"z\.parquet, after row 0: damaged"):
        removal.apply(tmp_path)


@pytest.mark.parametrize(
    ("line", "goes"),
    [
        ('{"prompt": "broken 3 row", ', False),
        ('{"prompt": "33", "annotator": 13, ', False),
        ('{"prompt": "cut", "annotator": 3, ', True),
        ('{"prompt": "cut", "annotator": "3"', True),
        ('{"votes": "[{\\"annotator\\": \\"3\\", ', True),
    ],
)
def test_a_broken_row_goes_where_the_name_is_a_whole_cell_of_it(tmp_path, line, goes):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    found = Removal(Withdrawal(annotators=("3",))).changes(path, None)
    assert found == ({1: None} if goes else {})


@pytest.mark.parametrize("name", ["3", "x@y.z"])
def test_a_person_goes_from_all_places_of_a_task(tmp_path, name):
    kim = {"id": 6, "completed_by": 4, "result": [], "updated_by": 4}
    task = {
        "id": 1,
        "data": {"prompt": "3", "response_a": "a", "response_b": "b"},
        "annotations": [
            {"id": 5, "completed_by": {"id": 3, "email": "x@y.z"}, "result": []},
            {**kim, "updated_by": {"id": 3, "email": "x@y.z"}},
        ],
        "drafts": [{"user": "x@y.z, 3", "result": []}, {"user": "kim@y.z, 4", "result": []}],
        "updated_by": [{"user_id": 3}],
        "comment_authors": [3, 4],
    }
    path = write(tmp_path / "tasks.jsonl", [task])
    source = SourceConfig(path=path, format="label_studio")
    assert Removal(Withdrawal(annotators=(name,))).changes(path, source) == {
        1: {
            **task,
            "annotations": [{**kim, "updated_by": None}],
            "drafts": task["drafts"][1:],
            "updated_by": [],
            "comment_authors": [4],
        }
    }


def test_a_person_goes_from_the_answers_that_argilla_1_exported(tmp_path):
    answers = [{"user_id": name, "value": "a", "status": "submitted"} for name in ("ann", "bob")]
    rows = [
        {"user_id": "bob", "prompt": "Q?", "preference": part} for part in (answers, answers[:1])
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    left = {**rows[0], "preference": answers[1:]}
    found = Removal(Withdrawal(annotators=("ann",))).changes(path, None)
    assert found == {1: left, 2: None}
