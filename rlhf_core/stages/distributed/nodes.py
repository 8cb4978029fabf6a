"""Where the nodes of one training meet: node 0 listens, the others find it, and all hear of an end.

torchrun's rendezvous brings processes together and says nothing of files, of settings that differ,
or of a machine that is gone. Its own store, a ``TCPStore`` at ``distributed.rdzv_endpoint``, tells
of them here, before it starts and beside it: the same port serves both.
"""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from rlhf_core.adapters.retries import retry_while
from rlhf_core.config import DistributedConfig
from rlhf_core.errors import ProcessError

logger = logging.getLogger(__name__)

ANSWER = timedelta(seconds=60)
"""How long one question to the store may take."""
LOOK_SECONDS = 0.2
SILENT_SECONDS = 60.0
"""A node that has not been heard of for so long is taken for lost."""
GRACE_SECONDS = 10.0
"""What the ranks of one node have to notice by themselves that another node has ended."""
FINISHED = "ended well"


class NothingToTrain(ProcessError):
    """Node 0 has finished without a training: the stage was done before."""


Answered = TypeVar("Answered")

_LOST = (dist.DistError, RuntimeError, ValueError)
"""What a store raises whose server is gone; it has no one type of error."""


class Rendezvous:
    """What one node hears from the others, and tells them."""

    def __init__(self, store: TCPStore, settings: DistributedConfig) -> None:
        self._store = PrefixStore("rlhf", store)
        self._keep = store
        self._settings = settings
        self._others = range(1, settings.nnodes)
        self._beats = {node: ("", time.monotonic()) for node in self._others}
        self._ended: dict[int, float] = {}

    def gather(self, task: str) -> None:
        """Give every other node the task, as node 0, and wait until all are ready for it.

        Raises:
            ProcessError: one did not come in time, or cannot take part; says why.
        """
        self._store.set("task", task)
        deadline = time.monotonic() + self._settings.rdzv_timeout
        while missing := [node for node in self._others if not self._is_ready(node)]:
            if time.monotonic() > deadline:
                raise ProcessError(self._missing(missing[0]))
            time.sleep(LOOK_SECONDS)
        self._store.set("go", "now")

    def receive(self) -> str:
        """Return node 0's task, as another node.

        Raises:
            ProcessError: another command is this node already, or node 0 has ended.
        """
        with self._loss_reported():
            me = f"{socket.gethostname()} process {os.getpid()}"
            first = self._store.compare_set(f"node/{self._settings.node_rank}", "", me).decode()
        if first != me:
            raise ProcessError(
                f"node {self._settings.node_rank} is there already ({first}): give each node a "
                "distributed.node_rank of its own, and start all of them again after an error"
            )
        return self._wait("task")

    def answer(self, problem: str = "") -> None:
        """Tell node 0 that this one is ready, or why not; wait until all are.

        Raises:
            ProcessError: ``problem``, or node 0 has ended.
        """
        with self._loss_reported():
            self._store.set(f"ready/{self._settings.node_rank}", problem)
        if problem:
            raise ProcessError(problem)
        self._wait("go")

    @contextmanager
    def watched(self, lost: Callable[[str], None]) -> Iterator[None]:
        """Look after the other nodes while the block runs.

        Args:
            lost: called once, from another thread, with a line on the node that has ended.
        """
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_SECONDS):
                try:
                    line = self._look()
                except _LOST:
                    line = self._gone()
                if line is not None:
                    if not stop.is_set():
                        lost(line)
                    return

        thread = threading.Thread(target=watch, name="node-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def report_end(self, how: str) -> None:
        """Say how this node has ended: ``FINISHED``, or a line that names it; never raises."""
        try:
            key = f"ended/{self._settings.node_rank}" if self._settings.node_rank else "end"
            self._store.set(key, how)
        except _LOST:
            return

    def report_untrained(self, how: str) -> None:
        """Tell nodes that wait for node 0, or come within a while, how it has ended untrained."""
        self.report_end(how)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if all(self._said(f"ended/{node}") is not None for node in self._others):
                return
            time.sleep(LOOK_SECONDS)

    def wait_for_ends(self) -> dict[int, str]:
        """Return how the others have ended, by node; those that came have a while for it."""
        said: dict[int, str] = {}
        deadline = time.monotonic() + GRACE_SECONDS
        came = [node for node in self._others if self._said(f"node/{node}") is not None]
        while time.monotonic() < deadline and len(said) < len(came):
            time.sleep(LOOK_SECONDS)
            found = {node: self._said(f"ended/{node}") for node in came}
            said = {node: how for node, how in found.items() if how is not None}
        gone = {node: f"node {node} is gone, without a word" for node in came}
        return {node: how for node, how in (gone | said).items() if how != FINISHED}

    def _look(self) -> str | None:
        if self._settings.node_rank:
            self._store.add(f"beat/{self._settings.node_rank}", 1)
            end = self._said("end")
            return None if end == FINISHED else end
        now = time.monotonic()
        for node in self._others:
            how = self._said(f"ended/{node}")
            beat = str(self._store.add(f"beat/{node}", 0))
            if how is None and beat != self._beats[node][0]:
                self._beats[node] = (beat, now)
            if (
                how not in (None, FINISHED)
                and now - self._ended.setdefault(node, now) > GRACE_SECONDS
            ):
                return how
            if how is None and now - self._beats[node][1] > SILENT_SECONDS:
                return f"node {node} has been silent for {SILENT_SECONDS:.0f} s"
        return None

    def _is_ready(self, node: int) -> bool:
        """Say whether a node waits for the others; raise what keeps it from that."""
        ready = self._said(f"ready/{node}")
        if problem := ready or self._said(f"ended/{node}"):
            raise ProcessError(problem)
        return ready is not None

    def _wait(self, key: str) -> str:
        with self._loss_reported():
            while (said := self._said(key)) is None:
                end = self._said("end")
                if end is not None:
                    raise NothingToTrain(end) if end == FINISHED else ProcessError(end)
                time.sleep(LOOK_SECONDS)
        return said

    def _said(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    @contextmanager
    def _loss_reported(self) -> Iterator[None]:
        try:
            yield
        except ProcessError:
            raise
        except _LOST as error:
            raise ProcessError(self._gone()) from error

    def _gone(self) -> str:
        return f"node 0 does not answer any more at {self._settings.rdzv_endpoint}"

    def _missing(self, node: int) -> str:
        came = self._said(f"node/{node}")
        where = "" if came is None else f" ({came} came, and was not ready)"
        return (
            f"node {node} of {self._settings.nnodes} was not there within "
            f"{self._settings.rdzv_timeout} s (distributed.rdzv_timeout){where}: start the same "
            f"command on it with distributed.node_rank={node}, and this one again"
        )


def host(settings: DistributedConfig) -> Rendezvous:
    """Listen for the other nodes, at the endpoint's address alone where it is known here.

    Raises:
        ProcessError: it is no address of this machine, or another program has the port.
    """
    endpoint = settings.rdzv_endpoint
    name, port = parse_rendezvous_endpoint(endpoint, default_port=0)
    try:
        find = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        found = _until_it_answers(settings, find, socket.gaierror)[0]
    except OSError as error:
        raise ProcessError(f"distributed.rdzv_endpoint {endpoint}: {error}") from error
    listener = bound_socket(str(endpoint), found)
    try:
        listener.listen(settings.nnodes + settings.processes)
    except OSError as error:
        listener.close()
        raise ProcessError(_not_listening(str(endpoint), error)) from error
    store = TCPStore(
        name,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=ANSWER,
        multi_tenant=True,  # torchrun's rendezvous in this process takes the same server
        master_listen_fd=listener.detach(),
    )
    return Rendezvous(store, settings)


Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


def bound_socket(endpoint: str, found: Found) -> socket.socket:
    """Return a socket of node 0's endpoint, which does not listen yet.

    Args:
        endpoint: as the settings have it.
        found: what ``socket.getaddrinfo`` found it to be.

    Raises:
        ProcessError: it is no address of this machine, or another program has the port.
    """
    family, kind, _, _, address = found
    name, _ = parse_rendezvous_endpoint(endpoint, default_port=0)
    if is_loopback(str(address[0])) and not is_loopback(name):
        address = ("", *address[1:])  # Debian gives a machine's own name 127.0.1.1
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ProcessError(_not_listening(endpoint, error)) from error
    return bound


def is_loopback(name: str) -> bool:
    """Say whether an address, or ``localhost``, is one that this machine alone reaches."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def join(settings: DistributedConfig) -> Rendezvous:
    """Find node 0.

    Raises:
        ProcessError: nobody listened at the endpoint in time.
    """
    name, port = parse_rendezvous_endpoint(settings.rdzv_endpoint, default_port=0)

    def connect() -> TCPStore:
        socket.create_connection((name, port), timeout=5).close()
        return TCPStore(name, port, is_master=False, wait_for_workers=False, timeout=ANSWER)

    try:
        store = _until_it_answers(settings, connect, OSError, *_LOST)
    except (OSError, *_LOST) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise ProcessError(
            f"node 0 did not listen at {settings.rdzv_endpoint} within "
            f"{settings.rdzv_timeout} s (distributed.rdzv_timeout): {said}; its command says "
            "why, unless the stage had been finished before"
        ) from error
    return Rendezvous(store, settings)


def _until_it_answers(
    settings: DistributedConfig, ask: Callable[[], Answered], *errors: type[Exception]
) -> Answered:
    """Ask once a second while nodes may still come."""
    return retry_while(
        lambda error: isinstance(error, errors),
        ask,
        patience=settings.rdzv_timeout,
        announce=lambda error, _: logger.debug("no answer yet: %s", error),
        waits=lambda _: 1.0,
    )


def _not_listening(endpoint: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"distributed.rdzv_endpoint {endpoint}: another program listens there; take another "
            "port, on every node"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"distributed.rdzv_endpoint {endpoint} is no address of this machine, and this is "
            "node 0: name it as the other nodes reach it, or give this one its "
            "distributed.node_rank"
        )
    return f"distributed.rdzv_endpoint {endpoint}: {error.strerror or error}"
