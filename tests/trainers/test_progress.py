"""A log without a terminal says how far long work is, and how long the rest takes."""

import logging

from rlhf_core.trainers import progress as module
from rlhf_core.trainers.progress import Progress


def test_a_plain_log_tells_the_time_that_is_left(caplog, monkeypatch):
    clock = iter([0.0, 20.0, 40.0, 60.0])
    now = [next(clock)]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, module.__name__)
    progress = Progress("sft", total=8, done=5)
    for now[0] in clock:
        progress.advance({"sft/loss": 1.5})
    progress.close()
    # Steps done before a resume took no time of this process.
    assert [record.getMessage() for record in caplog.records] == [
        "sft step=6 of=8 elapsed=00:20 eta=00:40 loss=1.5",
        "sft step=7 of=8 elapsed=00:40 eta=00:20 loss=1.5",
        "sft step=8 of=8 elapsed=01:00 loss=1.5",
    ]
