"""`rlhf sample`: prompts from the command line, from a file, and a person who chats."""

import builtins
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_core.errors import ConfigError, DataError
from rlhf_core.evaluation.suites import read_items
from rlhf_core.models import save_model, scalar_from_causal
from rlhf_core.rollout import sample as responses
from rlhf_core.rollout.chat import ChatModel, open_chat
from rlhf_core.rollout.prompts import read_prompts
from rlhf_core.storage.records import read_raw_lines
from rlhf_core.tokenization import load_tokenizer
from rlhf_flows.commands import sample as command
from rlhf_flows.commands.cli import app

WHOLE = ["--file", "p.txt", "--scorer", "x", "--output", "o.jsonl"]


@pytest.fixture
def sample(request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    base = str(request.config.rootpath / "data/base")

    def run(*words):
        return CliRunner().invoke(app, ["sample", base, "--temperature", "0", *map(str, words)])

    return run


def test_several_answers_are_numbered_and_one_is_not(sample):
    alone = sample("When does the castle open?").stdout
    assert alone == "The castle opens at 11 am.\n"
    assert sample("When does the castle open?", "-n", 2).stdout == f"1. {alone}2. {alone}"


def test_every_prompt_of_a_file_is_answered_after_the_system_message(sample, tmp_path, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "When does the castle open?"}\n\n{"prompt": "Hello"}\n')
    heard = []
    answered = responses.sample_responses

    def listen(model, tokenizer, prompts, **options):
        heard.extend(prompts)
        return answered(model, tokenizer, prompts, **options)

    monkeypatch.setattr(responses, "sample_responses", listen)
    lines = sample("--file", file, "--system", "Be short.").stdout.splitlines()
    assert lines[0] == "1. When does the castle open?"
    assert lines[1].startswith("1.1 ")
    assert lines[2] == "2. Hello"
    assert [[turn.role for turn in asked] for asked in heard] == [["system", "user"]] * 2
    assert heard[0][0].content == "Be short."


def test_a_chat_remembers_what_was_said(request, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    base = str(request.config.rootpath / "data/base")
    seen = []
    answer = ChatModel.answer
    monkeypatch.setattr(
        ChatModel, "answer", lambda self, asked: seen.append(asked) or answer(self, asked)
    )
    said = iter(["When does the castle open?", "", "<|eos|>", "And the library?"])

    def ask(_):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", ask)
    chat = ChatModel.load(Path(base))
    command._talk(open_chat(chat, "Be short.", temperature=0.0, max_tokens=20, seed=0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1. The castle opens at 11 am."
    assert lines[1].startswith("not answered: ")
    assert lines[2].startswith("3. ")
    assert [turn.role for turn in seen[-1].messages] == ["system", "user", "assistant", "user"]


def test_without_a_prompt_and_a_terminal_it_says_what_it_expects(sample):
    done = sample()
    assert done.exit_code == 2
    assert "a terminal to chat on" in done.output
    assert sample("Hello", "--file", "x").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\n \n", "no prompt in it"),
        ("a.txt", b"\xff\xfe", "cannot be read as UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{', "a.jsonl, line 2: broken JSON"),
        ("a.jsonl", b'{"prompt": " "}', "a.jsonl, row 1: empty prompt"),
        ("a.jsonl", b'{"text": "a"}', "a.jsonl, line 1: missing column 'prompt'"),
    ],
)
def test_a_file_without_prompts_is_told_of(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--best-of", 4], "missing --file, --scorer, --output"),
        (["--scorer", "x", "--file", "p.txt"], "missing --best-of, --output"),
        (["--best-of", 4, "--file", "p.txt", "--scorer", "x"], "missing --output"),
        (["--best-of", 4, "Hello", "--scorer", "x", "--output", "o.jsonl"], "missing --file"),
        (["--best-of", 1, *WHOLE], "expected 2 or more"),
        (["--best-of", 4, *WHOLE], "greedy answers are all the same"),
        (["--best-of", 4, *WHOLE, "-n", 3], "--best-of says how many"),
    ],
)
def test_what_the_best_answers_take_is_said_before_anything_is_read(sample, words, told):
    done = sample(*words)
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)


def test_the_best_answers_are_written_and_not_printed(sample, tmp_path, request):
    base = str(request.config.rootpath / "data/base")
    scorer = scalar_from_causal(Path(base), seed=1)
    save_model(scorer, load_tokenizer(Path(base)), tmp_path / "scorer")
    file = request.config.rootpath / "data/raw/prompts.jsonl"  # of several turns some
    (tmp_path / "p.jsonl").write_text("\n".join(file.read_text().splitlines()[:6]))
    words = ("--best-of", 2, "--file", "p.jsonl", "--scorer", "scorer", "--output", "o.jsonl")
    done = sample(*words, "--temperature", 1, "--system", "Be short.")
    assert done.exception is None, done.exception
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert done.stdout.startswith(f"{len(rows)} demonstrations in o.jsonl, each the best of 2 ")
    assert "KL from" in done.stdout
    assert "at most 0.19 nats" in done.stdout
    assert {row["prompt"][0]["content"] for row in rows} == {"Be short."}
    assert {len(row["prompt"]) for row in rows} >= {2, 4}
    again = sample(*words, "--temperature", 1)
    assert "o.jsonl is there already" in str(again.exception)


def test_a_prompt_with_a_system_message_takes_no_other(tmp_path):
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": turns}))
    assert len(read_prompts(tmp_path / "a.jsonl")[0].prompt) == 2
    with pytest.raises(DataError, match="leave the other one"):
        read_prompts(tmp_path / "a.jsonl", "c")
    with pytest.raises(DataError, match=r"b\.jsonl: no such file"):
        read_prompts(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    "read", [read_prompts, read_items, lambda path: list(read_raw_lines(path))]
)
def test_a_pipe_and_a_folder_are_called_what_they_are(tmp_path, read):
    """`--file <(...)` was "no such file"."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"no regular file but a pipe .* write it to a file"):
        read(pipe)
    with pytest.raises(DataError, match="a folder; expected a file"):
        read(tmp_path)
    with pytest.raises(DataError, match="File name too long;"):
        read(tmp_path / f"{'x' * 300}.jsonl")
