"""What the speech stage takes on its device."""

import torch

from services.inference.device import blank_modules, is_compiled_for
from services.inference.memory import META, WORKSPACE_FACTOR, held_bytes, module_bytes, run_bytes
from services.inference.memory_budget import MIB
from services.inference.product import laid_out_bytes
from services.speech.model import SpeechConfig, SpeechModel

NOISE_COPIES = 6
"""Of 64 bits for each code that may be drawn: the noise is worked out in integers and in float32."""


class SpeechMemory:
    """The bytes of weights, slots and steps, from the config alone; `voice_cache_mib` as the setting says."""

    def __init__(
        self,
        config: SpeechConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        prefill_chunk: int,
        voice_cache_mib: int,
    ) -> None:
        with blank_modules(META, dtype):
            model = SpeechModel(config, "reference")
        self._config = config
        self._device = device
        self._dtype = dtype
        self._prefill_chunk = prefill_chunk
        self._backbone = model.backbone.stack
        depth = model.depth_decoder.cache(1)
        self._depth_bytes = held_bytes(depth)
        if is_compiled_for(device, dtype):
            self._depth_bytes -= sum(held_bytes(places.sight) for places in depth.runs)
        self.weights_bytes = module_bytes(model) + laid_out_bytes(model, device, dtype)
        self.voice_cache_bytes = voice_cache_mib * MIB

    def slot_bytes(self, context_length: int) -> int:
        """Keys and values of the backbone, and the depth decoder's of one frame."""
        return held_bytes(self._backbone.cache(slots=1, positions=context_length)) + self._depth_bytes

    def workspace_bytes(self, slots: int, context_length: int) -> int:
        """A chunk of a voice prompt, a frame of every slot, and every slot's voice prompt."""
        config, dtype, rows = self._config, self._dtype, slots
        backbone, depth_decoder = config.backbone, config.depth_decoder
        chunk = run_bytes(backbone, rows=1, width=self._prefill_chunk, reach=context_length, dtype=dtype)
        # Both runs start with two positions a slot: what leads up to a step's token, the state and the first code.
        frame = run_bytes(backbone, rows=rows, width=2, reach=context_length, dtype=dtype)
        frame += run_bytes(depth_decoder, rows=rows, width=2, reach=config.codebook_count, dtype=dtype)
        noise = NOISE_COPIES * rows * config.codebook_count * config.code_count * torch.int64.itemsize
        prompts = slots * context_length * backbone.hidden_size * dtype.itemsize
        return WORKSPACE_FACTOR * (chunk + frame + noise) + prompts
