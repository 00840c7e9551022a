"""Settings of a stage that holds a model."""

from pydantic import Field

from services.inference.device import BadSetting, DeviceName, DtypeName
from services.runtime.settings import ServiceSettings

SHORTEST_CONTEXT = 1024
"""Positions below which a conversation of a few turns, or a voice of 20 s with its reply, does not fit."""

LONGEST_CONTEXT = 8192
"""Positions that are set aside unasked: 11 minutes of a reply, 5 minutes of speech that is listened to."""


class StageSettings(ServiceSettings):
    """What every stage with a model can be told."""

    checkpoint: str = Field(
        description="directory in the published layout, mini for the shipped one, or random:<shape>[:<seed>] with "
        "shape tiny, small or chroma-4b",
        min_length=1,
    )
    device: DeviceName = Field("auto", description="where the model runs; auto is CUDA where there is one")
    slots: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="streams that are served at once; what the memory holds, at most 8 on a CPU and 128 on CUDA, if "
        "unset",
    )
    memory_gib: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="what the stage may take on its device, weights included, in GiB; 90 percent of what is free at "
        "the start if unset",
    )
    memory_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the device's memory that the stage may take if memory_gib is unset, for stages that start "
        "together on one device; what is free limits it in any case",
    )
    queue_limit: int = Field(16, ge=0, le=10_000, description="streams that may wait for a slot; more are UNAVAILABLE")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of what torch computes, as encoders; if unset, its own choice. A step of a model on "
        "a CPU takes one, a prompt two",
    )


class TransformerStageSettings(StageSettings):
    """What a stage with an autoregressive model can be told besides."""

    dtype: DtypeName = Field(
        "auto", description="precision; auto is bfloat16 on CUDA and float32 on a CPU, which has no other"
    )
    context_length: int | None = Field(
        None,
        ge=16,
        description="positions a slot can hold; if unset, what the memory holds for all slots, from 1024 to 8192 or "
        "the model's own limit",
    )
    prefill_chunk: int = Field(128, ge=1, le=8192, description="prompt positions that are run between two decode steps")

    def context_lengths(self, model_limit: int) -> list[int]:
        """The lengths that a slot may be given, ascending, given the model's limit; BadSetting for one beyond it.

        The one that is set, or powers of two and the longest that is given unasked.
        """
        if self.context_length is not None and self.context_length > model_limit:
            raise BadSetting(f"context_length is {self.context_length}; expected at most the model's {model_limit}")
        longest = self.context_length or min(model_limit, LONGEST_CONTEXT)
        length = self.context_length or SHORTEST_CONTEXT
        lengths = []
        while length < longest:
            lengths.append(length)
            length *= 2
        return [*lengths, longest]
