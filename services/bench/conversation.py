"""What is said in a measured conversation: the same for everyone who measures."""

from dataclasses import dataclass

import numpy as np

from services.bench.engines import StageEngines
from services.bench.shape import ReplyShape
from services.reasoner.audio_encoder import audio_token_count
from services.reasoner.prompt import Clip, Prompt, Turn, assemble
from services.speech.engine import Voice

TRANSCRIPT = "The harbour was quiet before dawn, and the first boats came in slowly, one after another, out of the fog."
LOUDNESS = 0.1


@dataclass(frozen=True)
class Conversation:
    """A voice, and user turns that are all different: a prompt that was heard before may cost less."""

    shape: ReplyShape
    engines: StageEngines

    def voice(self) -> Voice:
        """The voice prompt; its frames are random codes, which cost what any others do."""
        codec = self.engines.codec.codec
        count = max(1, round(self.shape.voice_seconds * codec.sample_rate_hz / codec.samples_per_frame))
        codes = np.random.default_rng(0).integers(0, codec.codebook_size, (count, codec.codebook_count))
        return Voice(TRANSCRIPT, codes.tolist())

    def turns(self, index: int) -> list[Turn]:
        """A conversation of one user turn: noise of some loudness, other noise for every index."""
        count = round(self.shape.user_seconds * self.engines.reasoner.features.sample_rate_hz)
        samples = np.random.default_rng(index).normal(0, LOUDNESS, count).astype(np.float32)
        return [Turn("user", (Clip(samples),))]

    def clips(self, index: int) -> list[Clip]:
        """The sound of the same conversation."""
        return [part for turn in self.turns(index) for part in turn.parts if isinstance(part, Clip)]

    def prompt(self, index: int) -> Prompt:
        """The same conversation as the reasoner reads it."""
        reasoner = self.engines.reasoner
        counts = [audio_token_count(reasoner.features.frame_count(len(clip.samples))) for clip in self.clips(index)]
        return assemble(self.turns(index), counts, reasoner.tokenizer, reasoner.model.config.audio_token_id)
