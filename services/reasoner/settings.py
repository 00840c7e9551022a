"""Settings of the reasoner."""

from services.stage.settings import TransformerStageSettings


class ReasonerSettings(TransformerStageSettings):
    """What the reasoner can be told."""
