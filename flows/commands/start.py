"""Where `rlhf` begins: Ctrl-C and SIGTERM are heard before anything else is imported."""

import signal
import sys
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever stops a command by it gets the same clean end as with Ctrl-C."""


def exit_status(stop: KeyboardInterrupt) -> int:
    """Return the status a shell expects: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def main() -> None:
    """Run the command line; whoever interrupts it, at start-up too, sees no traceback."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        from rlhf_core.garbage import loading_begins

        loading_begins()
        from rlhf_flows.commands import cli

        cli.main()
    except KeyboardInterrupt as stop:
        sys.stderr.write("\nstopped\n")
        raise SystemExit(exit_status(stop)) from None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
