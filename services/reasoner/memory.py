"""What the reasoner takes on its device."""

import torch

from services.inference.device import blank_modules
from services.inference.memory import META, WORKSPACE_FACTOR, held_bytes, module_bytes, run_bytes
from services.inference.product import laid_out_bytes
from services.reasoner.audio_encoder import audio_token_count
from services.reasoner.model import ReasonerConfig, ReasonerModel

PROMPT_COPIES = 2
"""Of a prompt's embeddings, until it is prefilled: the clips' as they were encoded, and all in their places."""

FEATURE_COPIES = 3
"""Of a clip's mel features, while they are extracted: the samples of a clip that comes as a whole, an earlier turn's,
are joined and mirrored at their edge, 160 of them for a frame of 128 bins each time (measured: 2.5). Spectra are of
0.2 s at a time, and of 60 s that come while they are said no more than 0.5 is there in all."""


class ReasonerMemory:
    """The bytes of weights, slots and steps, from the config alone."""

    voice_cache_bytes = 0

    def __init__(self, config: ReasonerConfig, device: torch.device, dtype: torch.dtype, *, prefill_chunk: int) -> None:
        with blank_modules(META, dtype):
            model = ReasonerModel(config)
        self._config = config
        self._stack = model.stack
        self._device = device
        self._dtype = dtype
        self._prefill_chunk = prefill_chunk
        self.weights_bytes = module_bytes(model) + laid_out_bytes(model, device, dtype)

    def slot_bytes(self, context_length: int) -> int:
        """Keys and values."""
        return held_bytes(self._stack.cache(slots=1, positions=context_length))

    def workspace_bytes(self, slots: int, context_length: int) -> int:
        """A chunk of a prompt, a token of every slot, a block of a clip, and every slot's prompt with its features."""
        stack, dtype, rows = self._config.stack, self._dtype, slots
        chunk = run_bytes(stack, rows=1, width=self._prefill_chunk, reach=context_length, dtype=dtype)
        step = run_bytes(stack, rows=rows, width=1, reach=context_length, dtype=dtype)
        logits = rows * self._config.vocabulary_size * dtype.itemsize
        mel = context_length * self._mel_bytes_per_position
        prompts = slots * (PROMPT_COPIES * context_length * stack.hidden_size * dtype.itemsize + mel)
        if self._device.type == "cpu":  # for a card they are extracted in the host's memory
            prompts += FEATURE_COPIES * mel
        return WORKSPACE_FACTOR * (chunk + step + logits + self._block_bytes()) + prompts

    @property
    def _mel_bytes_per_position(self) -> int:
        frames = self._config.audio.mel_block // audio_token_count(self._config.audio.mel_block)
        return frames * self._config.audio.mel_bins * torch.float32.itemsize

    def _block_bytes(self) -> int:
        """Activations of one layer of the audio encoder over a block, and of the convolutions before it."""
        audio, frames = self._config.audio, self._config.audio.mel_block
        positions = 2 * audio_token_count(frames)  # pairs of them are pooled at the end
        attention = 4 * audio.hidden_size + audio.heads * positions
        layer = positions * (4 * audio.hidden_size + 2 * audio.intermediate_size + attention)
        convolutions = 4 * frames * audio.hidden_size
        return (layer + convolutions) * self._dtype.itemsize
