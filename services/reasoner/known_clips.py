"""What tells sounds apart, and the clips that were heard before."""

import hashlib
import secrets
from typing import Protocol

from torch import Tensor

MOST_CLIPS = 4096
"""Clips that are remembered: a number for each 2 s of them."""


class Digest(Protocol):
    """A digest of a clip's samples that is still being made."""

    def update(self, data: bytes, /) -> None:
        """Takes the next samples."""

    def digest(self) -> bytes:
        """The digest of what was taken."""


class KnownClips:
    """The identities of clips that were heard as a whole.

    A block's identity is a digest of its features: blocks with the same one are the same input to the audio encoder. A
    clip of an earlier turn that was heard before is told by its samples, so its features are not computed again only
    to find out that nothing has to be done with them.
    """

    def __init__(self) -> None:
        # Nobody outside can make sounds that pass for others'.
        self._key = secrets.token_bytes(16)
        self._identities: dict[bytes, tuple[int, ...]] = {}

    def digest(self) -> Digest:
        """A digest of samples, to be filled."""
        return hashlib.blake2b(digest_size=16, key=self._key)

    def identity(self, features: Tensor) -> int:
        """A number 0 ..< 2**62 for a block's features."""
        digest = hashlib.blake2b(features.numpy().tobytes(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little") >> 2

    def find(self, digest: bytes) -> tuple[int, ...] | None:
        """The identities of a clip's blocks, if it was heard before."""
        found = self._identities.pop(digest, None)
        if found is not None:
            self._identities[digest] = found  # the last to be forgotten
        return found

    def keep(self, digest: bytes, identities: tuple[int, ...]) -> None:
        """Remembers a clip; forgets the one that was asked for longest ago where there are too many."""
        self._identities.pop(digest, None)
        self._identities[digest] = identities
        if len(self._identities) > MOST_CLIPS:
            del self._identities[next(iter(self._identities))]
