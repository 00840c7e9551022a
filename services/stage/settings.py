"""Settings of a stage that holds a model."""

from pydantic import Field

from services.inference.device import BadSetting, DeviceName, DtypeName
from services.runtime.settings import ServiceSettings


class StageSettings(ServiceSettings):
    """What every stage with a model can be told."""

    checkpoint: str = Field(
        description="directory in the published layout, or random:<shape>[:<seed>] with shape tiny, small or chroma-4b",
        min_length=1,
    )
    device: DeviceName = Field("auto", description="where the model runs; auto is CUDA where there is one")
    slots: int = Field(8, ge=1, le=1024, description="streams that are served at once")
    queue_limit: int = Field(16, ge=0, le=10_000, description="streams that may wait for a slot; more are UNAVAILABLE")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of the model; the library's choice if unset"
    )


class TransformerStageSettings(StageSettings):
    """What a stage with an autoregressive model can be told besides."""

    dtype: DtypeName = Field("auto", description="precision; auto is bfloat16 on CUDA and float32 on a CPU")
    context_length: int | None = Field(
        None, ge=16, description="positions a slot can hold; the model's own limit, at most 8192, if unset"
    )
    prefill_chunk: int = Field(128, ge=1, le=8192, description="prompt positions that are run between two decode steps")

    def resolve_context_length(self, model_limit: int) -> int:
        """The positions of a slot, given the model's limit; BadSetting when more are asked for."""
        if self.context_length is None:
            return min(model_limit, 8192)
        if self.context_length > model_limit:
            raise BadSetting(f"context_length is {self.context_length}; expected at most the model's {model_limit}")
        return self.context_length
