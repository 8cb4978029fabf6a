"""Waiting for what a started command says."""

import subprocess


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Return the first line of its errors with ``text``; it may go on writing while it is read."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError("".join(lines))
