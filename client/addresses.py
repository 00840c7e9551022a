"""Where the orchestrators of a mesh listen."""

from client.errors import InputError


def read_addresses(text: str) -> tuple[str, ...]:
    """The addresses of "host:port,host:port"; InputError where one is empty."""
    addresses = tuple(address.strip() for address in text.split(","))
    if not all(addresses):
        raise InputError(f"--address must be as host:port, or several with commas between them, got {text!r}")
    return addresses
