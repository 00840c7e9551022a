"""A clip as the reasoner hears it: in blocks, while it comes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.inference.prefixes import Identities
from services.reasoner.audio_encoder import audio_token_count
from services.reasoner.features import ClipFeatures, MelFeatures
from services.reasoner.known_clips import KnownClips

MOST_COMPUTATIONS = 50
"""Computations of features between two looks at what else there is to do: 10 s of sound."""

MOST_IDENTITIES = 20
"""Blocks that are told apart between two such looks."""


@dataclass(eq=False)
class Block:
    """An attention block of a clip: mel frames `first` ..< `end`, of which `lowest` is the least log10 of a power.

    identity: of the block's features by `floor`. embeddings [positions, hidden]: of these, once they are encoded.
    """

    first: int
    end: int
    lowest: float
    floor: float
    identity: int
    embeddings: Tensor | None = None
    encoding_count: int = 0

    @property
    def position_count(self) -> int:
        """Positions that it takes in a prompt."""
        return audio_token_count(self.end - self.first)


class HeardClip:
    """A clip whose full blocks are known as soon as their last frame is, its last one when it has ended.

    Something louder that comes later may change the features of a block that was known, and its identity with them;
    its embeddings are then gone.
    """

    def __init__(self, mel: MelFeatures, mel_block: int, known_clips: KnownClips) -> None:
        self.blocks: list[Block] = []
        # The clip has ended, and no identity will change.
        self.is_complete = False
        # How often an identity was added or changed.
        self.revision = 0
        self._identities = np.empty(0, np.int64)
        self._identities_revision = 0
        self._mel_block = mel_block
        self._mel = mel
        self._features = ClipFeatures(mel)
        self._known_clips = known_clips
        self._digest = known_clips.digest()
        self._sample_count = 0
        self._has_ended = False

    def add(self, samples: NDArray[np.float32]) -> None:
        """Takes the next samples."""
        self._sample_count += len(samples)
        self._digest.update(samples.tobytes())
        self._features.add(samples)

    def end(self) -> None:
        """Says that all samples were given. Of a clip that was heard before, no features are needed to know it."""
        self._has_ended = True
        self._features.end()
        if not self.blocks and (identities := self._known_clips.find(self._digest.digest())) is not None:
            never = float("inf")
            self.blocks = [Block(*span, never, never, own) for span, own in zip(self._spans(), identities, strict=True)]
            self._complete()

    @property
    def identities(self) -> Identities:
        """Of the positions of the blocks that are known: places in these blocks, which no token is equal to."""
        if self._identities_revision != self.revision:
            places = [-1 - block.identity - np.arange(block.position_count) for block in self.blocks]
            self._identities = np.concatenate([np.empty(0, np.int64), *places])
            self._identities_revision = self.revision
        return self._identities

    @property
    def can_advance(self) -> bool:
        """Whether there are features to be computed."""
        return self._features.can_advance

    def advance(self) -> bool:
        """Does a piece of what can be done for features and identities; False when there is nothing."""
        count = 0
        while count < MOST_COMPUTATIONS and self._features.advance():
            count += 1
        return count > 0 or (not self.is_complete and self._identify())

    def features(self, block: Block) -> Tensor:
        """A block's features, [mel bins, frames]; all that can be done must have been done."""
        return self._features.features(block.first, block.end)

    def _identify(self) -> bool:
        """Tells the blocks that are new, and those anew that the floor has reached, as many as go in a piece."""
        floor = self._features.floor
        changed = [block for block in self.blocks if block.lowest < floor and block.floor < floor]
        for block in changed[:MOST_IDENTITIES]:
            block.floor = floor
            if (identity := self._identity(block)) != block.identity:
                block.identity, block.embeddings = identity, None
                self.revision += 1
        new = self._spans()[len(self.blocks) :]
        for first, end in new[: max(MOST_IDENTITIES - len(changed), 0)]:
            block = Block(first, end, self._features.lowest(first, end), floor, identity=0)
            block.identity = self._identity(block)
            self.blocks.append(block)
            self.revision += 1
        if self._has_ended and len(changed) + len(new) <= MOST_IDENTITIES:
            self._known_clips.keep(self._digest.digest(), tuple(block.identity for block in self.blocks))
            self._complete()
        return bool(changed or new)

    def _identity(self, block: Block) -> int:
        return self._known_clips.identity(self.features(block))

    def _complete(self) -> None:
        self.is_complete = True
        self.revision += 1

    def _spans(self) -> list[tuple[int, int]]:
        """Frames of the blocks: of all once the clip has ended, till then of those that are full."""
        size, count = self._mel_block, self._mel.frame_count(self._sample_count)
        if not self._has_ended:
            count = self._features.final_count // size * size
        spans = [(first, min(first + size, count)) for first in range(0, count, size)]
        # One or two frames at the very end have no position.
        return [span for span in spans if audio_token_count(span[1] - span[0]) > 0]
