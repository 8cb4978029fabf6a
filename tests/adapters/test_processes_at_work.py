"""A process that moves aliases is known again whatever happens to the machine's clock."""

import sys

import psutil
import pytest

from rlhf_core.adapters.registry.processes_at_work import is_gone, this_process


@pytest.mark.skipif(sys.platform != "linux", reason="starts are told otherwise there")
@pytest.mark.parametrize("seconds", [-1, 1, 3_600])
def test_a_living_process_is_there_after_a_pause_of_the_machine(monkeypatch, seconds):
    """Its start is told from the machine's, which moves by a second even without one."""
    said = this_process()
    platform = psutil._psplatform
    started = platform.boot_time()
    monkeypatch.setattr(platform, "boot_time", lambda: started + seconds)
    assert not is_gone(said)


def test_a_later_process_with_the_same_number_is_not_the_one_that_was():
    process, _, said = this_process().partition("|")
    host_and_number, _, began = process.rpartition(":")
    assert is_gone(f"{host_and_number}:{float(began) - 3:.2f}|{said}")
