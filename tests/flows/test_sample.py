"""`rlhf sample`: prompts from the command line, from a file, and a person who chats."""

import builtins
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_core.errors import DataError
from rlhf_core.rollout import sample as responses
from rlhf_core.rollout.chat import ChatModel, open_chat
from rlhf_core.rollout.prompts import read_prompts
from rlhf_flows.commands import models
from rlhf_flows.commands.cli import app


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
    models._chat(open_chat(chat, "Be short.", temperature=0.0, max_tokens=20, seed=0))
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
        ("a.jsonl", b'{"prompt": "a"}\n{', "a.jsonl:2: no JSON"),
        ("a.jsonl", b'{"text": "a"}', "a.jsonl:1: expected an object"),
    ],
)
def test_a_file_without_prompts_is_told_of(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / name)
