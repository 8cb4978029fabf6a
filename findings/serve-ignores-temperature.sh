#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` takes a request's temperature, answers 200, and decodes greedily.
#
# Expected: an OpenAI-compatible endpoint samples at the temperature that a request names.
# Seen: /v1/chat/completions uses the temperature only where the served folder's generation_config.json says do_sample;
#   elsewhere, as in most base models and in what a trainer saves, eight requests at temperature 2 get one and the same
#   answer. No warning and no error. Where it says do_sample, temperature and seed do what they say.
# Matters: a champion, an AI judge or a rollout engine served this way answers as if it were deterministic: pairs of
#   answers sampled for people to compare are pairs of equal answers, and best-of-n has n times the same one.
# Until that changes: write do_sample into the folder's generation_config.json before it is served.
# Output seen (CPU):
#   do_sample not set:  8 requests at temperature 2: 1 different answers; with seed 7: 1
#   do_sample set:      8 requests at temperature 2: 8 different answers; with seed 7: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 'transformers[serving]==5.23.0'
PATH="$folder/env/bin:$PATH" HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def make_model(folder, do_sample):
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<pad>", "<end>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )
    model.generation_config.do_sample = do_sample
    model.save_pretrained(folder)


def ask(port, model, **parameters):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "stream": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body | parameters).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def answers(do_sample):
    folder = str(Path.cwd() / f"model-{do_sample}")
    make_model(folder, do_sample)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open("log", "ab") as log:
        server = subprocess.Popen(
            ["transformers", "serve", "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        hot = {ask(port, folder, temperature=2.0) for _ in range(8)}
        seeded = {ask(port, folder, temperature=2.0, seed=7) for _ in range(8)}
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error}: {error.read()[:500]!r}; log: {Path('log').read_text()[-1500:]}")
    finally:
        server.terminate()
        server.wait()
    return len(hot), len(seeded)


plain, sampling = answers(False), answers(True)
print(f"do_sample not set:  8 requests at temperature 2: {plain[0]} different answers; with seed 7: {plain[1]}")
print(f"do_sample set:      8 requests at temperature 2: {sampling[0]} different answers; with seed 7: {sampling[1]}")
expected = plain == (1, 1) and sampling[0] > 4 and sampling[1] == 1
raise SystemExit(0 if expected else "the behaviour has changed")
PYTHON
