"""How functions are compiled, and where what was compiled is kept for the next start.

Compiled code holds what it calls, also from other files, so it is kept under the digest of all sources of compiled
code: a change of any compiles anew.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba import njit, types

_PACKAGE = Path(__file__).parent
_SERVICES = _PACKAGE.parent.parent


def _sources() -> Iterator[Path]:
    yield from sorted(_PACKAGE.glob("*.py"))
    yield from sorted(_SERVICES.glob("*/compiled_*.py"))


def _keep() -> bool:
    """Chooses the folder; False where none can be written to."""
    digest = hashlib.blake2b(b"".join(source.read_bytes() for source in _sources()), digest_size=8).hexdigest()
    for folder in (_PACKAGE / "__pycache__", Path.home() / ".cache" / "chroma-mesh"):
        try:
            (folder / digest).mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):
            continue
        if os.access(folder / digest, os.W_OK):
            setattr(numba.config, "CACHE_DIR", str(folder / digest))  # noqa: B010 - it has no type
            return True
    return False


_IS_KEPT = _keep()


def _once_for_all_constants(dispatcher: Any) -> Any:
    """A function that is compiled for types alone: Numba compiles anew for every constant that a call names."""
    compile_for = dispatcher.compile
    dispatcher.compile = lambda signature: compile_for(tuple(types.unliteral(kind) for kind in signature))
    return dispatcher


def compiled(function: Callable[..., Any]) -> Any:
    """A function as machine code, which holds no lock of Python's while it runs."""
    return _once_for_all_constants(njit(nogil=True, cache=_IS_KEPT)(function))


def inlined(function: Callable[..., Any]) -> Any:
    """A function for compiled code alone, copied to where it is called."""
    return njit(inline="always")(function)


def generator(function: Callable[..., Any]) -> Any:
    """A generator for compiled code alone: it is kept within what calls it, for numba finds none that it kept."""
    return _once_for_all_constants(njit(nogil=True)(function))
