"""Processes that end with the one that started them, however that ends."""

import ctypes
import os
import signal
import sys
import threading
import time

SECONDS_BETWEEN_LOOKS = 0.5
_SIGNAL_WHEN_PARENT_DIES = 1
"""PR_SET_PDEATHSIG of Linux."""


def end_with(parent: int, number: signal.Signals) -> None:
    """Send this process a signal as soon as ``parent`` is not its parent any more.

    The system's own way (PR_SET_PDEATHSIG) is tied to the thread that started the process, and
    Linux alone has it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_asker() -> None:
    """End this process with the thread that started it and waits for it, also within a call.

    Code of a user may run for ever, and hold the interpreter so that no other thread looks, as a
    regular expression can: then Linux ends it.
    """
    end_with(os.getppid(), signal.SIGKILL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_WHEN_PARENT_DIES, int(signal.SIGKILL), 0, 0, 0)
