"""DVC and git through their command lines: which bytes belong to which commit."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rlhf_core.adapters.settings import child_environment
from rlhf_core.dataprep.files import md5_of
from rlhf_core.errors import DataError


def directory_md5(directory: Path) -> str:
    """Return the md5 DVC records for a directory, ``.dir`` suffix included.

    DVC stores a directory as a JSON list of its files, ordered by relative path, and addresses
    it by that list's md5.
    """
    files = {
        path.relative_to(directory).as_posix(): md5_of(path)
        for path in directory.rglob("*")
        if path.is_file()
    }
    return listing_md5(files)


def listing_md5(files: Mapping[str, str]) -> str:
    """Return DVC's md5 of a directory with these files (relative path to md5)."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def git_revision(directory: Path) -> str | None:
    """Return the commit checked out around ``directory``; None outside a repository."""
    try:
        answer = _run(["git", "rev-parse", "--verify", "HEAD"], directory)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def repository_root(directory: Path) -> Path:
    """Return the top of the git repository around ``directory``; it must be under DVC as well.

    Raises:
        DataError: there is no such repository.
    """
    answer = _run(["git", "rev-parse", "--show-toplevel"], directory)
    root = Path(answer.stdout.strip())
    if answer.returncode or not (root / ".dvc").is_dir():
        raise DataError(
            f"{directory.resolve()}: not in a git repository under DVC; dataset versions live in"
            " one: git init, then dvc init"
        )
    return root


def git(*arguments: str, cwd: Path) -> str:
    """Run git and return what it printed.

    Raises:
        DataError: git refused; one line says why.
    """
    return _checked(["git", *arguments], cwd)


def dvc(*arguments: str, cwd: Path, code: Path | None = None) -> str:
    """Run DVC, with its analytics off, and return what it printed.

    Args:
        arguments: command and options.
        cwd: a place in the repository.
        code: folder whose Python packages the commands of a stage import before any installed
            ones; None leaves that as it is.

    Raises:
        DataError: DVC, or the command of a stage it ran, refused; one line says why.
    """
    return _checked([sys.executable, "-m", "dvc", *arguments], cwd, code)


def _checked(command: list[str], cwd: Path, code: Path | None = None) -> str:
    answer = _run(command, cwd, code)
    if answer.returncode:
        name = " ".join(["dvc" if "dvc" in command[:3] else "git", *command[-2:]])
        raise DataError(f"{name}: {_reason(answer.stderr or answer.stdout)}")
    return answer.stdout


def _run(
    command: list[str], cwd: Path, code: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = child_environment()
    if code is not None:
        first = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(code), *([first] if first else [])])
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def _reason(output: str) -> str:
    """Return the line that says what went wrong: the first that calls itself an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error: ", "fatal: "))]
    found = (marked or lines[-1:] or ["no reason given"])[0]
    return found.split(": ", 1)[-1] if marked else found
