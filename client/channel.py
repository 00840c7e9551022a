"""The connection to one service of the mesh."""

import ipaddress

import grpc

MAXIMUM_MESSAGE_BYTES = 16 * 2**20


def open_channel(address: str) -> grpc.aio.Channel:
    """A plaintext channel to "host:port"; the caller closes it."""
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAXIMUM_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),  # or a session would wait for ever for a machine that has gone
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if is_loopback(address):  # a proxy of the environment cannot reach this machine's own services
        options.append(("grpc.enable_http_proxy", 0))
    return grpc.aio.insecure_channel(address, options=options)


def is_loopback(address: str) -> bool:
    """Whether "host:port" names this machine itself."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
