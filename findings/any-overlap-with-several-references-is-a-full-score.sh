#!/usr/bin/env bash
# lm-eval 0.4.13: where a question has several references, F1, ROUGE or a distance of any answer is 1 as soon as it is not 0.
#
# Expected: the answer is scored against each reference and the best of these counts, as SQuAD and its followers do; a
#   second reference may raise a score a little, and never lowers one.
# Seen: as soon as doc_to_target gives a list, a generated answer gets 1.0 if its metric is anything but 0 for any of the
#   references, and 0.0 otherwise. For exact_match that is right; a metric with values between 0 and 1 becomes "shares a
#   word with one of them". A metric where less is better is turned round: a perfect answer has a distance from the other
#   references, and scores as the worst one does. The standard error is that of the ones and zeros. No warning; the scores
#   of each answer in samples_*.jsonl are those ones and zeros too.
# Matters: somebody adds second references to an evaluation, and every model is perfect: a gate on it passes a model that
#   is wrong in each answer, and says the same phrase to every question.
# Until that changes: give the task a process_results of its own that takes the best over the references.
# Output seen (4 questions; mean F1 of words, and mean number of words too many or missing, where 0 is perfect):
#   right:      one reference 1.00 and 0.00; two: 1.00 and 1.00, by definition 1.00 and 0.00
#   wrong:      one reference 0.00 and 5.50; two: 1.00 and 1.00, by definition 0.59 and 3.25
#   one phrase: one reference 0.00 and 6.50; two: 0.75 and 1.00, by definition 0.31 and 6.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet lm-eval==0.4.13 datasets==5.2.0
HF_HUB_OFFLINE=1 HF_HOME="$folder" TQDM_DISABLE=1 env/bin/python - <<'PYTHON'
import json
import logging
import warnings
from collections import Counter

from lm_eval import simple_evaluate
from lm_eval.api.model import LM

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
PHRASE = "the dog of the house"
ROWS = [  # a question, its references, a right and a wrong answer
    ("Who wrote it?", ["Mary Ann Evans", "George Eliot"], "George Eliot", "Mary Shelley"),
    ("Where?", ["the city of Leeds", "Leeds"], "Leeds", "the city of York"),
    ("When?", ["in the spring of 1871", "1871"], "1871", "in the autumn of 1902"),
    ("How long?", ["for eight of the months", "eight months"], "eight months", "for six of the weeks"),
]
MODELS = {
    "right": {row[0]: row[2] for row in ROWS},
    "wrong": {row[0]: row[3] for row in ROWS},
    "one phrase": {row[0]: PHRASE for row in ROWS},
}
SEEN = {
    "right": [(1.00, 0.00), (1.00, 1.00), (1.00, 0.00)],
    "wrong": [(0.00, 5.50), (1.00, 1.00), (0.59, 3.25)],
    "one phrase": [(0.00, 6.50), (0.75, 1.00), (0.31, 6.00)],
}


def f1(references, predictions):
    reference, answer = references[0].split(), predictions[0].split()
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))


def wrong_words(references, predictions):
    reference, answer = Counter(references[0].split()), Counter(predictions[0].split())
    return float((reference - answer).total() + (answer - reference).total())


class Says(LM):
    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def generate_until(self, requests):
        return [self.answers[request.args[0]] for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def task(name, choose):
    with open(f"{name}.jsonl", "w") as rows:
        for question, references, *_ in ROWS:
            rows.write(json.dumps({"question": question, "answer": choose(references)}) + "\n")
    return {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": f"{name}.jsonl"}, "test_split": "train",
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [
            {"metric": f1, "aggregation": "mean", "higher_is_better": True},
            {"metric": wrong_words, "aggregation": "mean", "higher_is_better": False},
        ],
    }


def by_definition(answers):
    best = [max(f1([reference], [answers[row[0]]]) for reference in row[1]) for row in ROWS]
    least = [min(wrong_words([reference], [answers[row[0]]]) for reference in row[1]) for row in ROWS]
    return sum(best) / len(ROWS), sum(least) / len(ROWS)


tasks = [task("one", lambda references: references[-1]), task("two", lambda references: references)]
for name, answers in MODELS.items():
    results = simple_evaluate(Says(answers), tasks=tasks, bootstrap_iters=0)["results"]
    scores = [(results[kind]["f1,none"], results[kind]["wrong_words,none"]) for kind in ("one", "two")]
    scores = [tuple(round(float(value), 2) for value in pair) for pair in [*scores, by_definition(answers)]]
    one, two, defined = ("{:.2f} and {:.2f}".format(*pair) for pair in scores)
    print(f"{name + ':':11} one reference {one}; two: {two}, by definition {defined}")
    assert scores == SEEN[name], "the behaviour has changed"
PYTHON
