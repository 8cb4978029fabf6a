"""Disks that take no more, without the right to mount one."""

import resource
from contextlib import contextmanager


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
