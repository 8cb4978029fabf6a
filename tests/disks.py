"""Disks that take no more: small ones, where they can be mounted, and a limit where not."""

import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest


class SmallDisk:
    """A file system of 128 MiB, mounted at a folder until it is taken away."""

    def __init__(self, folder):
        if shutil.which("mount") is None:
            pytest.skip("a small disk cannot be mounted here: there is no mount")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        self.folder, self._filler = folder, folder / ".filler"

    @contextmanager
    def with_room(self, num_bytes):
        """Leave so much room in it until the block ends."""
        free = shutil.disk_usage(self.folder).free
        self._filler.write_bytes(bytes(max(0, free - num_bytes)))
        try:
            yield
        finally:
            self._filler.unlink()

    def take_away(self):
        """Unmount it, with all that is in it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def no_larger_files(num_bytes):
    """No file of this process, nor of its children, may grow beyond so much.

    It is a real refusal at the real write, of every library: EFBIG, for Python ignores SIGXFSZ.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
