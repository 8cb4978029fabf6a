"""`rlhf` commands that are killed at an exact point.

A fork of the server that has imported everything forks a child per command. Stages
run without Prefect's engine here; the served tests have it. A child counts its effects, all that
lasts beyond it: every file it opens for writing, every rename, folder and removal, every statement
and commit that changes the database, every request to a server. Told a number, it kills itself
right before that effect.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time

EFFECTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "http.client.send"}
"""Names of audit events, beside opening a file for writing."""
MARK = "RLHF_TEST_MARK"
"""Environment variable by which a test finds the processes that it started."""
STAGES = ("prepare", "sft", "reward", "policy", "evaluate")
NEST = """
import sys
from pathlib import Path
from tests.flows.mortal import main
main(Path(sys.argv[1]))
"""


class Mortal:
    """The parent's side: runs commands, one after the other."""

    def __init__(self, log, forked):
        """``forked`` starts Python code, as ``tests.forked.Commands.python``."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "PREFECT_", "RLHF_"))
        }
        self.log = log
        self.process = forked.python(NEST, log, env=environment | {"OMP_NUM_THREADS": "1"})

    def rlhf(
        self, folder, *arguments, at_effect=0, after_seconds=0.0, largest_file=-1, may_end=(0,)
    ):
        """Run a command; returns how it ended, its effects and its seconds.

        Args:
            folder: working directory.
            arguments: of the command line.
            at_effect: die right before this effect; 0 lives on.
            after_seconds: be killed after so long; 0 lives on.
            largest_file: no file may grow beyond so many bytes; -1 is as large as it likes.
            may_end: statuses that are no surprise.
        """
        request = {
            "folder": str(folder),
            "arguments": arguments,
            "at_effect": at_effect,
            "after_seconds": after_seconds,
            "largest_file": largest_file,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["killed"] or answer["status"] in may_end, self.log.read_text()[-4000:]
        return answer

    def end(self):
        """No more commands."""
        self.process.stdin.close()
        self.process.wait()


class Effects:
    """Counts effects into a pipe, so that the count survives, and dies before the chosen one."""

    def __init__(self, fatal, pipe):
        self.count, self.fatal, self.pipe = 0, fatal, pipe

    def happens(self):
        self.count += 1
        os.write(self.pipe, b".")
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event, arguments):
        if is_effect(event, arguments):
            self.happens()

    def watch(self):
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def statement(connection, cursor, text, *rest):
            if text.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
                self.happens()

        event.listen(Engine, "before_cursor_execute", statement)
        event.listen(Engine, "commit", lambda connection: self.happens())
        sys.addaudithook(self.audit)


def is_effect(event, arguments):
    """Whether an audit event is of something that lasts."""
    return event in EFFECTS or (event == "open" and _writes(*arguments))


def marked(mark):
    """Living processes with the mark, whoever their parent is by now."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or one that has just ended
    return found


def kill_others(words):
    """Kill the processes with this one's mark whose command line has one of the words."""
    import psutil

    for process in marked(os.environ[MARK]) if words else ():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(word in process.cmdline() for word in words):
                process.kill()


def _writes(path, mode, flags):
    return isinstance(path, str | bytes | os.PathLike) and bool(
        (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )


def without_engine():
    """Take Prefect's engine away from the stages."""
    from rlhf_flows import stages
    from rlhf_flows.commands import local
    from rlhf_flows.engine.environment import prepare_environment

    prepare_environment()
    for stage in STAGES:
        name = f"{stage}_stage"
        setattr(stages, name, getattr(stages, name).fn)
    local.in_this_process = contextlib.nullcontext


def run_child(request, pipe, log):
    """Be one command."""
    from rlhf_flows.commands.cli import main

    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(request["folder"])
    sys.argv = ["rlhf", *request["arguments"]]
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
    Effects(request["at_effect"], pipe).watch()
    status = 3
    with contextlib.suppress(SystemExit):
        try:
            status = 0
            main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def answer(request, log):
    """Fork a child for the request, kill it if asked to, and tell how it ended."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        run_child(request, writing, log)
    os.close(writing)
    effects = 0
    deadline = started + (request["after_seconds"] or float("inf"))
    while True:
        left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reading], [], [], left)
        if not ready:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
            continue
        counted = os.read(reading, 65536)
        if not counted:
            break
        effects += len(counted)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "status": os.waitstatus_to_exitcode(status),
        "effects": effects,
        "seconds": time.monotonic() - started,
    }


def main(log):
    """Answer requests, one a line, until there are no more."""
    without_engine()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line), log)) + "\n")
        sys.stdout.flush()
