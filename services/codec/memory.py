"""What the codec takes on its device."""

import torch

from services.codec.config import CodecConfig
from services.codec.mimi import build_mimi
from services.codec.streaming_decoder import StreamingDecoder
from services.inference.device import is_compiled_for
from services.inference.memory import META, WORKSPACE_FACTOR, held_bytes, module_bytes

SOUND_COPIES = 4
"""Of the widest signal, which are alive at once in a residual block: its input, the padded copy of what is convolved,
the result and the sum."""


class CodecMemory:
    """The bytes of weights, slots and steps, from the config alone.

    `maximum_seconds`: of the longest sound that is encoded. A slot's length is the decoder's window, not a choice.
    """

    voice_cache_bytes = 0

    def __init__(self, config: CodecConfig, device: torch.device, *, maximum_seconds: float) -> None:
        mimi = build_mimi(config.mimi, META)
        decoder = StreamingDecoder(mimi, config.codebook_count)
        self._mimi = config.mimi
        self._samples_per_frame = decoder.samples_per_frame
        self._sound_samples = int(maximum_seconds * config.mimi.sampling_rate)
        self._state_bytes = held_bytes(decoder.new_state(1))
        self.window = decoder.ring_columns
        self.weights_bytes = module_bytes(mimi, decoder)
        if is_compiled_for(device, torch.float32):
            from services.codec.compiled_weights import compiled_bytes  # a GPU's machine needs no compiler

            self.weights_bytes += compiled_bytes(decoder)

    def slot_bytes(self, context_length: int) -> int:  # noqa: ARG002 - the window is in the state
        """What the decoder remembers of the frames before."""
        return self._state_bytes

    def workspace_bytes(self, slots: int, context_length: int) -> int:  # noqa: ARG002
        """The encoding of the longest sound, with the codewords of a codebook, and a frame of every slot."""
        samples = self._sound_samples + slots * self._samples_per_frame
        numbers = SOUND_COPIES * samples * self._mimi.num_filters + self._mimi.codebook_size * self._mimi.codebook_dim
        return WORKSPACE_FACTOR * numbers * torch.float32.itemsize
