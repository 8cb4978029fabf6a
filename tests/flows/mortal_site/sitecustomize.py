"""Kills a stage's process at an exact point, in every process that finds this on PYTHONPATH.

``RLHF_TEST_DEATHS`` names a folder; a file in it is named after a stage and says before which
effect (see ``tests.flows.mortal``), counted from the stage's first, its process dies, and which
other processes of the test die with it. The file goes when it has come true.
"""

import json
import os
import signal
import sys
from pathlib import Path

FOLDER = os.environ.get("RLHF_TEST_DEATHS")
sys.path.insert(0, str(Path(__file__).parents[3]))


class Death:
    """Waits for a stage to begin in this process, then for its effect."""

    def __init__(self):
        self.left, self.plan, self.others = 0, None, []

    def audit(self, event, arguments):
        if not is_effect(event, arguments):
            return
        if self.plan is None:
            self.look_up(event, arguments)
            return
        self.left -= 1
        if self.left == 0:
            self.come_true()

    def look_up(self, event, arguments):
        """The first thing a stage does is to write down what it is made from."""
        if event != "os.rename" or Path(str(arguments[1])).name != "inputs.json":
            return
        plan = Path(FOLDER) / Path(arguments[1]).parent.name
        if plan.exists():
            written = json.loads(plan.read_text())
            self.plan, self.left, self.others = plan, written["at_effect"], written["others"]

    def come_true(self):
        try:
            self.plan.unlink()
            kill_others(self.others)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


if FOLDER:
    from tests.flows.mortal import is_effect, kill_others

    sys.addaudithook(Death().audit)
