"""The network that processes of a training would use, looked at before there is one."""

import socket
from ipaddress import ip_address

import psutil
from torch.distributed import ProcessGroupGloo
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from rlhf_core.config import DistributedConfig
from rlhf_core.errors import ProcessError
from rlhf_core.stages.distributed.nodes import bound_socket, is_loopback

CONNECT_SECONDS = 5.0


def gloo_addresses(interfaces: str | None) -> tuple[str, ...]:
    """Return the addresses at which gloo listens on this machine: it opens its devices and says.

    Args:
        interfaces: ``GLOO_SOCKET_IFNAME``, names with commas between them; None leaves it to gloo,
            which takes what the machine's own name resolves to, or else 127.0.0.1.

    Raises:
        ProcessError: there is no such interface, or it has no address.
    """
    before, devices = _listening(), []
    if not interfaces:
        devices.append(ProcessGroupGloo.create_default_device())
    for name in (interfaces or "").split(",") if interfaces else ():
        try:
            devices.append(ProcessGroupGloo.create_device(interface=name))
        except RuntimeError as error:  # gloo has no type of error
            known = ", ".join(sorted(psutil.net_if_addrs()))
            raise ProcessError(
                f"GLOO_SOCKET_IFNAME is {interfaces}: no interface {name} with an address here; "
                f"there are {known}"
            ) from error
    return tuple(sorted({address for address, _ in _listening() - before}))


def reachable_interfaces() -> dict[str, str]:
    """Return name and IPv4 address of each interface that other machines may reach."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if name in up and address.family == socket.AF_INET and not is_loopback(address.address)
    }


def all_nodes_here(settings: DistributedConfig) -> bool:
    """Say whether no other machine takes part: one node, or several that meet on this machine."""
    if settings.nnodes == 1:
        return True
    name, _ = parse_rendezvous_endpoint(settings.rdzv_endpoint, default_port=0)
    return is_loopback(name)


def endpoint_seen(settings: DistributedConfig) -> str:
    """Resolve where the nodes would meet; as node 0 see that it can be had, else who is there.

    Nothing listens meanwhile: a node that waits for node 0 would take it for that.

    Raises:
        ProcessError: the name does not resolve, or node 0 cannot have the address or the port.
    """
    endpoint = str(settings.rdzv_endpoint)
    name, port = parse_rendezvous_endpoint(endpoint, default_port=0)
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ProcessError(f"distributed.rdzv_endpoint {endpoint}: {error}") from error
    address = str(found[4][0])
    if settings.node_rank == 0:
        bound_socket(endpoint, found).close()
        return f"{endpoint} is {address}, of this machine, and its port is free"
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        said = error.strerror or error
        return f"{endpoint} is {address}; node 0 does not listen there now ({said})"
    return f"{endpoint} is {address}, and a program listens there, as node 0 does"


def _listening() -> set[tuple[str, int]]:
    return {
        (str(ip_address(one.laddr.ip)), one.laddr.port)
        for one in psutil.Process().net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
