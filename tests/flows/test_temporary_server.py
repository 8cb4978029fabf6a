"""The server Prefect starts for one command leaves with it, even if it is killed."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.flows.served import ROOT

CODE = """
import time
from flows.environment import prepare_environment
prepare_environment()
from flows.local import in_this_process
with in_this_process():
    from prefect.server.api.server import SubprocessASGIServer
    server = SubprocessASGIServer()
    server.start()
    print(server.server_process.pid, flush=True)
    {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["time.sleep(600)", "pass"], ids=["killed", "finished"])
def test_a_temporary_server_ends_with_its_command(end, tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-c", CODE.replace("{end}", end)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    server = psutil.Process(int(command.stdout.readline()))
    if end != "pass":
        command.send_signal(signal.SIGKILL)
    command.wait()
    _, alive = psutil.wait_procs([server], timeout=300)
    assert not alive
