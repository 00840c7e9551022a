"""Settings of the speech stage."""

from pydantic import Field

from services.speech.depth_decoder import DepthPositions
from services.speech.weights import RopeScaling
from services.stage.settings import TransformerStageSettings


class SpeechSettings(TransformerStageSettings):
    """What the speech stage can be told."""

    depth_positions: DepthPositions = Field(
        "reference",
        description="rotations of the depth decoder's inputs: reference is 0,0,1,…,6, as the published voices were "
        "heard; training is 0,1,…,7",
    )
    rope_scaling: RopeScaling = Field(
        "config",
        description="rope scaling of a stack that config.json gives none: config leaves it plain, published takes the "
        "values of the first published code",
    )
    voice_cache_mib: int = Field(
        256, ge=0, le=2**20, description="memory for the prefixes of voices that were used, in MiB; part of the budget"
    )
