"""DVC and git through their command lines: which bytes belong to which commit."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rlhf_core.adapters.settings import child_environment
from rlhf_core.errors import DataError
from rlhf_core.storage.records import md5_of


def directory_md5(directory: Path, known: Mapping[str, str] | None = None) -> str:
    """Return the md5 DVC records for a directory, ``.dir`` suffix included.

    DVC stores a directory as a JSON list of its files, ordered by relative path, and addresses
    it by that list's md5.

    Args:
        directory: with its files.
        known: md5 of files that need not be read for it, by relative path.
    """
    names = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file()
    }
    known = known or {}
    return listing_md5({name: known.get(name) or md5_of(path) for name, path in names.items()})


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


def git_root(directory: Path) -> Path | None:
    """Return the top of the git repository around ``directory``; None outside of one."""
    answer = _run(["git", "rev-parse", "--show-toplevel"], directory)
    return None if answer.returncode else Path(answer.stdout.strip())


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
        arguments: command and options; not ``--quiet``, which keeps the reason of an error back.
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
        tool, said = ("dvc", command[3:]) if "dvc" in command[:3] else ("git", command[1:])
        name = " ".join([tool, *said[-2:]])
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


_ROOM = (
    "free space where the files of DVC and git lie: the repository, the cache (.dvc/cache unless"
    " configured), the remote and the folder for temporary files"
)
_REMEDIES = {
    "'dvc-s3'": "pip install 'rlhf-pipeline[s3]' (from a clone: pip install -e '.[s3]')",
    "to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SignatureDoesNotMatch": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "disk is full": _ROOM,
    os.strerror(errno.ENOSPC): _ROOM,
    os.strerror(errno.EDQUOT): _ROOM,
    os.strerror(errno.EFBIG): "raise the limit on the size of files (ulimit -f)",
}
_COURTESY = "having any troubles?"
"""How DVC ends what it says of an error it did not expect."""


def with_remedy(reason: str) -> str:
    """Return what a tool said of a storage, with what to set or install where that is known."""
    known = (remedy for sign, remedy in _REMEDIES.items() if sign in reason)
    remedy = next(known, None)
    return f"{reason}; {remedy}" if remedy else reason


def _reason(output: str) -> str:
    """Return what went wrong: the first line that calls itself an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.lower().startswith(_COURTESY)]
    marked = [line for line in lines if line.lower().startswith(("error: ", "fatal: "))]
    found = (marked or lines[-1:] or ["no reason given"])[0]
    said = found.split(": ", 1)[-1] if marked else found
    return with_remedy(said.removeprefix("unexpected error - "))
