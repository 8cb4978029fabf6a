"""What the peer's trainers of policies share: models, settings, and stopping at each iteration."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import worker
from ppo_work import ADAM_EPS, LEARNING_RATE, wait_for_step
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)
from work import BETA2

Function = Callable[..., Any]


class OneIterationAtATime(TrainerCallback):
    """Holds the training loop until the other end asks for an iteration."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}

    def marked(self, name: str, function: Function, see: Function | None = None) -> Function:
        """Note when ``function`` ends; ``see`` is given its result and its arguments."""

        def run(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            result = function(*args, **kwargs)
            self.marks[name] = time.perf_counter()
            if see is not None:
                see(result, *args)
            return result

        return run

    def start(self) -> None:
        self.clock, self.started = wait_for_step(), time.perf_counter()

    def on_train_begin(self, *_: object, **__: object) -> None:
        worker.answer(ready=True, idle_mb=worker.peak_megabytes())
        self.start()

    def finish(self, tokens: int, finished: float) -> None:
        """Answer what the iteration cost, and wait for the next.

        Args:
            tokens: of all responses.
            finished: share of responses with EOS.
        """
        cost = self.clock.read()
        worker.answer(
            **cost,
            tokens=tokens,
            finished=finished,
            generate=(self.marks["generate"] - self.started) / cost["wall"],
            score=(self.marks["score"] - self.marks["generate"]) / cost["wall"],
            peak_mb=worker.peak_megabytes(),
        )
        self.start()


def common_settings() -> dict[str, Any]:
    """What any of the trainers is set to."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE,
        "adam_beta2": BETA2,
        "adam_epsilon": ADAM_EPS,
        "weight_decay": 0.0,
        "temperature": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def read_causal(folder: Path, name: str = "causal") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)


def read_scalar(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        folder / "scalar", num_labels=1, dtype=torch.float32
    )


def run(build: Function, replay: Function, hold: Function) -> None:
    """Do what the command line says: replay, or train as asked.

    Args:
        build: makes the trainer on a folder, with options.
        replay: returns what the trainer makes of given responses.
        hold: gives the trainer a callback that stops at each iteration.
    """
    sys.stdout = sys.stderr
    stage, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    worker.take_threads()
    if stage == "replay":
        worker.answer(idle_mb=0, **replay(folder))
        return
    trainer = build(folder, **options)
    trainer.add_callback(hold(trainer))
    trainer.train()
