"""Names of things that a client is told about."""

import secrets


def new_id(kind: str) -> str:
    """A name that nothing else has: the kind (`item`, `resp`, …), and letters and digits."""
    return f"{kind}_{secrets.token_hex(11)}"
