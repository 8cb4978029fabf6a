"""Files of records: strict reading, whole writing."""

import errno
import gzip
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import zstandard

from rlhf_core.errors import DataError, StorageError
from rlhf_core.schema import DatasetRef, Message, Prompt
from rlhf_core.storage.records import (
    atomic_file,
    iterate_fields,
    json_line,
    keep_private,
    md5_of,
    parse_object,
    read_lines,
    read_records,
    sha256_of,
    write_records,
)


def read_objects(path):
    lines = read_lines(path)
    return [(n, parse_object(text, where=f"{path}, line {n}")) for n, text in lines]


PROMPTS = [
    Prompt(prompt_id=str(i), prompt=(Message(role="user", content=text),))
    for i, text in enumerate(["plain", "ünï \u2028 code", 'quote " and \n newline', ""])
]


def test_records_come_back_as_they_went(tmp_path):
    path = tmp_path / "prompts.jsonl"
    assert write_records(path, PROMPTS) == len(PROMPTS)
    assert read_records(path, Prompt) == PROMPTS
    assert list(tmp_path.iterdir()) == [path]


def test_digests_are_those_of_the_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert md5_of(path) == hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compression_is_chosen_by_the_name(tmp_path, suffix):
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2}\n'
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(packed)
    assert read_objects(path) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2: broken JSON"),
        ("x.jsonl", b"[1]\n", "line 1: expected a JSON object, found list"),
        ("x.jsonl", b'{"a": "\\ud800"}\n', "line 1: broken JSON"),
        ("x.jsonl", b'{"a": {"b": 1, "b": 2}}\n', "line 1: the key 'b' is duplicated"),
        ("x.jsonl", b'{"a": ":::", "a": ""}\n', "line 1: the key 'a' is duplicated"),
        (
            "x.jsonl",
            b'{"a": "\\u003a", "b": 1, "b": 2}\n',
            "line 1: the key 'b' is duplicated",
        ),
        ("x.jsonl", b'{"a:": 1, "\\u0061:": 2}\n', "line 1: the key 'a:' is duplicated"),
        ("x.jsonl", '{"a": "é"}\n'.encode("latin-1"), "line 1: not UTF-8"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1: not UTF-8"),
        ("x.jsonl.gz", b"not gzip at all", "damaged gzip"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], "damaged gzip"),
        ("x.jsonl.zst", b"not zstd at all", "damaged zstd"),
        ("x.jsonl.zst", zstandard.compress(b'{"a": 1}\n' * 999)[:-9], "damaged zstd"),
    ],
)
def test_a_damaged_file_is_one_line_with_the_place(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read_objects(path)
    assert str(path) in str(raised.value)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_of_a_row_is_rounded_or_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"id": 12345678901234567890123, "score": -0.1e-7,'
        b' "t:\\u003a": "\\ud83d\\ude42: \\u0000"}\n'
    )
    row = {"id": 12345678901234567890123, "score": -1e-8, "t::": "\U0001f642: \0"}
    assert read_objects(path) == [(1, row)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        list(read_lines(tmp_path / "nowhere.jsonl"))


def test_a_prepared_file_of_another_length_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_records(path, PROMPTS)
    ref = DatasetRef(path=path, sha256="", num_rows=3, dvc_md5="", git_revision=None)
    with pytest.raises(DataError, match="expected 3 rows, found 4"):
        read_records(ref, Prompt)


def test_lines_of_our_own_come_back_with_their_fields_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json_line(Message(role="user", content=text)) for text in ("a\nb", "\u2028 é", "")]
    path.write_bytes(b"".join(lines))
    read = list(iterate_fields(path))
    assert [line for line, _ in read] == lines
    assert [fields["content"] for _, fields in read] == ["a\nb", "\u2028 é", ""]
    path.write_bytes(lines[0] + lines[1][:-9])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: broken JSON"):
        list(iterate_fields(path))


def test_an_unknown_field_is_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_id": "1", "promt": []}\n')
    with pytest.raises(DataError, match="line 1: not a Prompt: missing column 'prompt'"):
        read_records(path, Prompt)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_file(path) as stream:
        stream.write("no bytes")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def fail(number, *names):
    def attempt(*arguments, **options):
        raise OSError(number, os.strerror(number), *names)

    return attempt


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("num_bytes", [1, 10_000_000])
def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path, monkeypatch, num_bytes):
    path = tmp_path / "data" / "pairs.jsonl"
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda _, mode, **options: opened(Path("/dev/full"), mode, **options)
    )
    with pytest.raises(StorageError) as refusal, atomic_file(path) as stream:
        stream.write(b"x" * num_bytes)
    assert str(refusal.value).startswith(f"{path} cannot be written: No space left on device; free")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_file_that_cannot_be_synced_or_made_is_named(tmp_path, monkeypatch, number):
    path = tmp_path / "pairs.jsonl"
    monkeypatch.setattr(os, "fsync", fail(number))
    with pytest.raises(StorageError, match=os.strerror(number)) as refusal:
        write_records(path, PROMPTS)
    assert str(path) in str(refusal.value)
    monkeypatch.setattr(Path, "mkdir", fail(number, str(tmp_path)))
    with pytest.raises(StorageError, match=os.strerror(number)):
        write_records(path, PROMPTS)
    assert list(tmp_path.iterdir()) == []


def test_what_the_writer_could_not_read_is_not_laid_to_the_file_it_writes(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out") as stream:
        stream.write((tmp_path / "in").read_bytes())


def test_the_error_survives_being_stored_with_a_run():
    made = StorageError.about(Path("x"), OSError(errno.ENOSPC, "full"))
    assert str(pickle.loads(pickle.dumps(made))) == str(made)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [None, 0o644])
def test_what_is_private_is_its_owner_s_alone_whether_it_was_there_or_not(tmp_path, folder, before):
    path = tmp_path / "kept"
    mode = 0o700 if folder else 0o600
    if before is not None:
        (path.mkdir if folder else path.touch)()
        path.chmod(0o755 if folder else before)
        if not folder:
            path.write_text("as it was")
    keep_private(path, folder=folder)
    assert path.stat().st_mode & 0o777 == mode
    assert folder or before is None or path.read_text() == "as it was"
