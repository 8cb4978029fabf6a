"""`rlhf` and `dvc` without their start-up: forks of a process that has imported everything once.

A command's own imports take several seconds of a processor, those of the Prefect server that it
starts three more; tests run a hundred commands. Here each is a fork with a working directory, an
environment, standard streams and an exit code of its own. Tests that are about starting, signals
or kills start real processes.

``python -m tests.forked_server SOCKET FOLDER LOAD [TEST...]`` serves. An executable in the folder,
named as the tool, asks it on behalf of another process: for ``rlhf`` DVC's stage, for
``prefect.engine``, a flow run's process, a worker; for ``worker`` pytest-xdist.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from filelock import FileLock

from rlhf_core.adapters.settings import child_environment

ROOT = Path(__file__).parents[1]
CLIENT = """#!{python} -ISs
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
request = {{"arguments": {words}, "folder": os.getcwd(), "environment": dict(os.environ)}}
data = json.dumps(request).encode()
socket.send_fds(link, [len(data).to_bytes(8, "big")], [0, 1, 2])
link.sendall(data)
answers = link.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int(answers.readline() or 70)
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
"""A tool for other processes: passes streams and signals on and ends as the fork does."""
TOOLS = ("rlhf", "prefect.engine")
"""What an executable in the server's folder asks for."""
WORKER = "worker"
"""Executable in the server's folder that pytest-xdist takes for a Python: see ``as_python``."""
WITHOUT_PICTURES = "TESTS_WITHOUT_PICTURES"
"""Set for an `rlhf` whose preparation is to draw none: they are a third of a small one."""
USERS = "users"
"""File that every user of the server holds locked, and the last of them lets go."""


class Commands:
    """Has commands run by a server that is there."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder

    def run(self, *arguments, cwd, env) -> subprocess.CompletedProcess[str]:
        """Run ``rlhf``, ``dvc`` or ``patched_prefect`` and return what ``subprocess.run`` would."""
        request = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(cwd),
            "environment": dict(env),
        }
        with (
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
            open(os.devnull) as stdin,
            self.connect() as link,
        ):
            ask(link, request, [stream.fileno() for stream in (stdin, stdout, stderr)])
            _, status = map(int, link.makefile())
            texts = []
            for stream in (stdout, stderr):
                stream.seek(0)
                texts.append(stream.read().decode())
        return subprocess.CompletedProcess(arguments, status, *texts)

    def rlhf(self, *arguments, cwd, env=None) -> str:
        """Run ``rlhf`` and return what it printed; it must succeed."""
        done = self.run("rlhf", *arguments, cwd=cwd, env=os.environ if env is None else env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dvc(self, *arguments, cwd) -> subprocess.CompletedProcess[str]:
        """Run ``dvc``; the ``rlhf`` of its stages is a fork as well."""
        path = os.pathsep.join((str(self.folder), os.environ.get("PATH", os.defpath)))
        return self.run("dvc", *arguments, cwd=cwd, env=child_environment() | {"PATH": path})

    def connect(self):
        """Return a connection to the server."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(self.address)
        return link

    def python(self, code, *arguments, cwd=ROOT, env=None):
        """Start ``python -c``; returns what is used of a ``subprocess.Popen`` with text pipes."""
        environment = dict(os.environ if env is None else env)
        theirs, ours = os.pipe()
        answers, answered = os.pipe()
        link = self.connect()
        words = ["-c", code, *map(str, arguments)]
        request = {"arguments": words, "folder": str(cwd), "environment": environment}
        ask(link, request, [theirs, answered, 2])
        os.close(theirs)
        os.close(answered)
        said = link.makefile()
        return SimpleNamespace(
            pid=int(said.readline()), wait=lambda: int(said.readline()), link=link,
            stdin=open(ours, "w", buffering=1), stdout=open(answers),
        )  # fmt: skip

    def serve_prefect(self, command, *, stdin, stdout, env, start_new_session):
        """Start Prefect's temporary server; returns what is used of a ``subprocess.Popen``."""
        theirs, ours = os.pipe()
        answers, answered = os.pipe()
        link = self.connect()
        request = {"arguments": command[2:], "folder": os.getcwd(), "environment": dict(env)}
        ask(link, request, [theirs, answered, 2])
        os.close(theirs)
        os.close(answered)
        return SimpleNamespace(
            stdin=open(ours, "wb"), stdout=open(answers, "rb"), wait=link.makefile().read
        )

    def run_prefect(self, command, **streams):
        """Run Prefect's command line as `rlhf deploy` asks for it."""
        return self.run("prefect", *command[3:], cwd=os.getcwd(), env=os.environ)

    def take_over(self):
        """Let what this process starts be forks as well."""
        from rlhf_core.adapters.datasets import versioning
        from rlhf_flows.servers import deploy, temporary_server

        versioning._run = self.instead_of(versioning._run)
        temporary_server.subprocess = self.subprocess()
        deploy.subprocess = SimpleNamespace(run=self.run_prefect)

    def subprocess(self):
        """What a module whose ``subprocess`` starts Prefect's temporary server gets for it."""
        return SimpleNamespace(Popen=self.serve_prefect, PIPE=subprocess.PIPE)

    def instead_of(self, start):
        """Return what runs DVC here and hands other tools on to ``start``.

        Where a commit brings code of its own, that is to be imported and not what is here.
        """

        def run(command, cwd, code=None):
            if command[1:3] != ["-m", "dvc"] or (
                code is not None and (code / "rlhf_core").exists()
            ):
                return start(command, cwd, code)
            return self.dvc(*command[3:], cwd=cwd)

        return run


def ask(link, request, streams):
    """Send what is to be run, with the three streams that it gets."""
    data = json.dumps(request).encode()
    socket.send_fds(link, [len(data).to_bytes(8, "big")], streams)
    link.sendall(data)


class Forked(Commands):
    """The same with a server, which starts with the first command.

    Those who give the same folder share one, pytest's workers for one: it ends by itself once all
    of them have ended, however they did.

    Args:
        folder: for its log and the executables that ask it.
        load: what it imports, a function of ``tests.forked_imports``.
        sources: folders from which it imports.
        tests: paths of tests that it imports as well, as pytest does.
    """

    def __init__(self, folder: Path, load="load_everything", sources=(ROOT,), tests=()):
        super().__init__("", folder)
        self.load, self.sources, self.tests = load, sources, tests
        self.users = None

    def start(self):
        """Have a server that has imported everything, and executables in ``folder`` that ask it."""
        if self.users is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.users = (self.folder / USERS).open("w")
        fcntl.flock(self.users, fcntl.LOCK_SH)
        with FileLock(self.folder / "turn"):
            home = self.folder / "home.txt"
            self.address = f"{home.read_text()}/socket" if home.exists() else ""
            if not Path(self.address).is_socket():
                # Paths of sockets may have 107 characters, those of a test's folders have more.
                made = tempfile.mkdtemp(prefix="forked-")
                self.address = f"{made}/socket"
                self._start(made)
                home.write_text(made)

    def _start(self, home):
        command = [sys.executable, "-m", "tests.forked_server"]
        command += [self.address, str(self.folder), self.load, *self.tests]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, self.sources)),
            "PREFECT_HOME": f"{home}/home",
        }
        log = self.folder / "server.log"
        with log.open("w") as stream:
            # Ctrl-C is for its users; it has a folder to remove when they have ended.
            streams = {"stdout": stream, "stderr": stream}
            process = subprocess.Popen(
                command, env=environment, cwd=home, start_new_session=True, **streams
            )
        asked = {tool: f"[{tool!r}, *sys.argv[1:]]" for tool in TOOLS}
        asked[WORKER] = f"[{WORKER!r}, sys.argv[-1]]"  # of what execnet calls Python with: the code
        for name, words in asked.items():
            client = self.folder / name
            text = CLIENT.format(python=sys.executable, address=self.address, words=words)
            client.write_text(text)
            client.chmod(0o755)
        while not Path(self.address).exists():
            if process.poll() is not None:
                shutil.rmtree(home)
                raise AssertionError(log.read_text())
            time.sleep(0.05)

    def as_python(self):
        """Return the path of a Python for test workers, which begin with everything imported."""
        self.start()
        return self.folder / WORKER

    def connect(self):
        self.start()
        return super().connect()

    def end(self):
        """No more commands."""
        if self.users is not None:
            self.users.close()
