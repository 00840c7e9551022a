"""Where the replicas of a service are: an address, a list of addresses, or a name that stands for all of them."""

import ipaddress
import re

# A name, an IPv4 address, or an IPv6 address in brackets; then a port.
HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+):([0-9]{1,5})")
DNS = re.compile(r"dns://[^/\s]*/([^/\s]+)")


def check_address(address: str) -> str:
    """The address itself when it is host:port, a list of those by IP address, or dns:///name:port.

    With dns://server:port/name:port that name server is asked. ValueError for anything else.
    """
    target(address)
    return address


def target(address: str) -> str:
    """What gRPC calls an address; ValueError as `check_address` says.

    gRPC itself asks for a name's addresses, and again when a connection is lost or is told to go.
    """
    if (name := DNS.fullmatch(address)) is not None:
        _host(name[1], address)
        return address
    hosts = [_host(part, address) for part in address.split(",")]
    if len(hosts) == 1:
        return address
    try:
        versions = {ipaddress.ip_address(host.strip("[]")).version for host in hosts}
    except ValueError:
        versions = set()
    if len(versions) != 1:
        raise ValueError(f"a list of addresses must be of IPv4 addresses, or of IPv6 addresses, got {address!r}")
    return f"ipv{versions.pop()}:{address}"


def _host(part: str, address: str) -> str:
    match = HOST_PORT.fullmatch(part)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(
            f"an address must be host:port, a list of those, or dns:///name:port, each with a port of 1 to 65535, "
            f"got {address!r}"
        )
    return match[1]
