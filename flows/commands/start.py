"""Where `rlhf` begins: Ctrl-C is heard before anything else is imported."""

import sys


def main() -> None:
    """Run the command line; whoever interrupts it, at start-up too, sees no traceback."""
    try:
        from rlhf_flows.commands.cli import main as front_door

        front_door()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        raise SystemExit(130) from None
