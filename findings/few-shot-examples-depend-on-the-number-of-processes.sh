#!/usr/bin/env bash
# lm-eval 0.4.13: how many processes evaluate decides which examples a question gets, and with more of them questions share them.
#
# Expected: with a fixed few-shot seed a question has the same prompt on one GPU and on eight; more processes are faster.
# Seen: examples are drawn one question after the other from one generator, and every process begins it anew with the
#   same seed for its own questions: of 1,000 questions one keeps its prompt. The n-th questions of all processes get the
#   same examples, so that eight processes ask with an eighth of the draws. Asking a part by samples= draws anew as well.
#   Reported in 2024 (lm-evaluation-harness#1308, #1719), still so; nothing of it stands in the results but other prompt hashes.
# Matters: a champion evaluated on one GPU and a challenger on eight were asked different things: the comparison has the
#   spread of another few-shot seed, and tests that pair the answers by question do not pair. Answers of questions that
#   share examples are no longer independent, which the standard error takes them to be.
# Until that changes: take the first_n sampler, or evaluate whatever is compared with equally many processes.
# Output seen (1,000 yes-or-no questions, 5 examples; the model answers as most of its examples do):
#   processes 1: 1000 questions have the prompt they had with one, 1000 draws of examples; accuracy 0.539
#   processes 2:    1 questions have the prompt they had with one,  500 draws of examples; accuracy 0.513
#   processes 4:    1 questions have the prompt they had with one,  250 draws of examples; accuracy 0.501
#   processes 8:    1 questions have the prompt they had with one,  125 draws of examples; accuracy 0.499
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet lm-eval==0.4.13 datasets==5.2.0
HF_HUB_OFFLINE=1 HF_HOME="$folder" TQDM_DISABLE=1 env/bin/python - <<'PYTHON'
import json
import logging
import random
import statistics

from lm_eval.api.task import ConfigurableTask

logging.disable(logging.WARNING)
QUESTIONS, SHOTS = 1000, 5
draw = random.Random(1)
LABELS = [draw.choice(["yes", "no"]) for _ in range(QUESTIONS)]
for name, labels in {"asked": LABELS, "examples": [draw.choice(["yes", "no"]) for _ in range(QUESTIONS)]}.items():
    with open(f"{name}.jsonl", "w") as rows:
        for number, label in enumerate(labels):
            rows.write(json.dumps({"question": f"{name} {number}?", "answer": label}) + "\n")
TASK = {
    "task": "asked", "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "asked.jsonl", "train": "examples.jsonl"}},
    "test_split": "test", "fewshot_split": "train", "num_fewshot": SHOTS, "output_type": "generate_until",
    "doc_to_text": "{{question}}", "doc_to_target": "answer", "generation_kwargs": {"until": ["\n"]},
}


def prompts(processes):
    """The prompt of every question, made by each process as lm_eval's evaluator makes it."""
    made = {}
    for rank in range(processes):
        task = ConfigurableTask(config=dict(TASK))
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=rank, world_size=processes)
        made |= {request.doc_id: request.args[0] for request in task.instances}
    return made


def answer(prompt):
    return statistics.mode(line for line in prompt.replace("?", "\n").split() if line in ("yes", "no"))


alone = prompts(1)
for processes in (1, 2, 4, 8):
    made = prompts(processes)
    assert sorted(made) == list(range(QUESTIONS))
    same = sum(made[number] == alone[number] for number in made)
    draws = len({prompt.rpartition("\n\n")[0] for prompt in made.values()})
    right = sum(answer(made[number]) == LABELS[number] for number in made) / QUESTIONS
    print(
        f"processes {processes}: {same:4} questions have the prompt they had with one, "
        f"{draws:4} draws of examples; accuracy {right:.3f}"
    )
    assert same == (QUESTIONS if processes == 1 else 1) and draws == QUESTIONS // processes, "the behaviour has changed"
PYTHON
