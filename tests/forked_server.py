"""The process whose forks are the commands and the test workers: see ``tests.forked``."""

import atexit
import contextlib
import fcntl
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

from rlhf_core.garbage import loading_begins, loading_ends
from tests import forked_imports
from tests.forked import USERS, WITHOUT_PICTURES, WORKER, Commands


def become(request, commands):
    """Be one command, in a fork: never returns."""
    status = 1
    try:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        tempfile.tempdir = None  # else where it was when somebody first asked
        sys.argv = list(request["arguments"])
        if sys.argv[0] == WORKER:
            status = _test(sys.argv.pop())
        else:
            commands.take_over()
            status = _main(sys.argv[0])
    except SystemExit as leaving:
        code = leaving.code
        status = code if isinstance(code, int) else int(code is not None)
        if isinstance(code, str):
            sys.stderr.write(code + "\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # What a process does at its end: threads are waited for, servers of its own are stopped.
        with contextlib.suppress(Exception):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _test(code):
    read_settings()
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(code, vars(main))
    return 0


def _main(tool):
    if tool == "dvc":
        from dvc.cli import main

        return main(sys.argv[1:])
    if tool in ("mlflow", "moto.server"):
        from tests.servers import serve

        return serve(tool)
    if tool == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
        return 0
    read_settings()
    if tool == "prefect.engine":
        from prefect.logging.configuration import setup_logging

        setup_logging(incremental=False)
        sys.modules.pop(tool, None)
        runpy.run_module(tool, run_name="__main__", alter_sys=True)
        return 0
    if tool == "rlhf":
        main = _rlhf()
    elif tool == "patched_prefect":
        from rlhf_flows.servers.patched_prefect import main
    elif tool == "prefect":
        from prefect.cli import app as main
    else:
        from rlhf_flows.servers import temporary_server

        close = temporary_server.close_prefect
        temporary_server.close_prefect = lambda port: (close(port), read_settings())[0]
        main = temporary_server.main
    main()
    return 0


def _rlhf():
    from rlhf_core.stages.preparation import build
    from rlhf_flows.commands.start import main

    if WITHOUT_PICTURES in os.environ:
        build.draw_pictures = lambda pictures, splits, folder: folder.mkdir()
    return main


def read_settings():
    """Let Prefect see the environment as it is now: it read it when it was imported."""
    import prefect.context

    prefect.context.GLOBAL_SETTINGS_CONTEXT = prefect.context.root_settings_context()


def answer(link, commands):
    """Run the command that comes over a connection; send its process and, at its end, exit code.

    It is killed with the one who asked for it, and with it what it started in its process group:
    git, and an executable of this folder, at whose end another fork ends in turn.
    """
    size, streams, _, _ = socket.recv_fds(link, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        if not (part := link.recv(1 << 20)):
            return  # who asked has ended before the end of the request
        data += part
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        link.close()
        become(json.loads(data), commands)
    with contextlib.suppress(OSError):  # done, by itself: whoever is first
        os.setpgid(child, child)
    link.sendall(f"{child}\n".encode())
    ended = threading.Event()

    def end_with_link():
        link.recv(1)
        if not ended.is_set():  # else the number may be another process's by now
            os.killpg(child, signal.SIGKILL)

    threading.Thread(target=end_with_link, daemon=True).start()
    _, status = os.waitpid(child, 0)
    ended.set()
    link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def serve(address, folder, load, *tests):
    """Answer each connection in a fork, several at once, as long as somebody may ask."""
    loading_begins()
    getattr(forked_imports, load)()
    if tests:
        forked_imports.load_tests(tests)
    loading_ends()  # a fork that looked through it for garbage would make a copy of every page
    commands = Commands(address, Path(folder))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    listener.settimeout(1.0)
    os.rename(f"{address}.new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    users = (Path(folder) / USERS).open()
    while not nobody_left(users):
        with contextlib.suppress(TimeoutError):
            link, _ = listener.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                users.close()
                link.setblocking(True)
                answer(link, commands)
                os._exit(0)
            link.close()
    shutil.rmtree(Path(address).parent)


def nobody_left(users):
    """Tell whether all who used the server have ended."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    serve(*sys.argv[1:])
