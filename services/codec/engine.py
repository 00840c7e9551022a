"""Schedules the codec's slots: each round decodes the frames that are due first."""

import time
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter

import torch

from services.codec.model import Codec
from services.codec.slot_decoder import Samples, SlotDecoder
from services.inference.slots import Full, SlotEngine, Stream

Frame = list[int]


class DecodeStream(Stream[Frame, Samples]):
    """One reply's sound: frames in, samples [samples_per_frame] of each frame out.

    The first `played_frame_count` frames are decoded, since what follows needs them, but their sound is not given out.
    """

    def __init__(self, played_frame_count: int = 0) -> None:
        super().__init__()
        self.played_frame_count = played_frame_count
        self.frame_count = 0
        # How long the device worked at the first frame that is given out.
        self.decode_seconds = 0.0

    def decoded(self, samples: Samples, took_seconds: float) -> None:
        """Takes the next frame's sound, and how long it took; on the device thread."""
        if self.frame_count == self.played_frame_count:
            # From its first sound on the listener needs a frame as often as frames last.
            self.due_at = max(self.due_at, time.perf_counter())
            self.decode_seconds = took_seconds
        if self.frame_count >= self.played_frame_count:
            self.emit(samples)
        self.frame_count += 1


class CodecEngine(SlotEngine[DecodeStream]):
    """The codec's slots, and encoding between two rounds."""

    _decoder: SlotDecoder

    def __init__(self, codec: Codec, *, slot_count: int, queue_limit: int) -> None:
        super().__init__(slot_count, queue_limit, "codec-device", device=codec.device)
        self.codec = codec
        self._encoding_count = 0

    def warm(self) -> None:
        """Allocates the slots and runs the codec once each way, so that no stream pays for a first time."""
        self._decoder = self.codec.slot_decoder(self.slot_count)
        self.codec.encode(torch.zeros(self.codec.samples_per_frame))
        self._decoder.step({0: [[0] * self.codec.codebook_count]})

    async def encode(self, samples: Samples) -> list[Frame]:
        """Encodes sound [samples] into frames; raises Full when `queue_limit` others wait.

        One call on the device thread, however long the sound is: decoding waits for it.
        """
        if self._encoding_count > self.queue_limit:
            raise Full(f"a sound is being encoded and {self.queue_limit} wait")
        self._encoding_count += 1
        try:
            frames: list[Frame] = await self.call(lambda: self.codec.encode(torch.from_numpy(samples)).tolist())
        finally:
            self._encoding_count -= 1
        return frames

    def join(self, stream: DecodeStream) -> None:
        """Forgets what the slot's last stream left."""
        self._decoder.reset(stream.slot)

    def leave(self, stream: DecodeStream) -> None:
        """Nothing to do: a slot is made new when a stream joins."""

    def advance(self) -> bool:
        """Decodes frames that are there and whose readers keep up; the listener who would be the first to hear nothing
        comes first.
        """
        live = [stream for stream in self.streams.values() if not stream.done]
        waiting = [
            (self._due_at(stream, index), stream)
            for stream in live
            for index in range(min(len(stream.inbox), stream.room, self._decoder.run))
        ]
        due = sorted(waiting, key=itemgetter(0))[: self._decoder.width]
        if due:
            self._decode(Counter(stream for _, stream in due))
        for stream in live:
            # In this order: once `ended` is seen, all frames are in the inbox.
            if stream.ended and not stream.inbox and not stream.done:
                stream.finish()
        return bool(due)

    def _due_at(self, stream: DecodeStream, index: int) -> float:
        """When the listener needs one of the frames that wait: the sound of those before it is then played."""
        frame_seconds = self.codec.samples_per_frame / self.codec.sample_rate_hz
        return stream.due_at + (stream.frame_count - stream.played_frame_count + index) * frame_seconds

    def _decode(self, due: Mapping[DecodeStream, int]) -> None:
        """Decodes so many frames of each of these streams."""
        began_at = time.perf_counter()
        try:
            frames = {stream.slot: [stream.take() for _ in range(count)] for stream, count in due.items()}
            decoded = self._decoder.step(frames)
        except Exception as error:
            # Slots without a frame in this round are not touched by it, so their streams go on.
            for stream in due:
                stream.fail(error)
            return
        took_seconds = time.perf_counter() - began_at
        self.count_step(len(due))
        for stream in due:
            for samples in decoded[stream.slot]:
                stream.decoded(samples, took_seconds)
