"""What the orchestrator can be told."""

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from services.orchestrator.recovery import RecoveryRule
from services.runtime.address import check_address
from services.runtime.settings import ServiceSettings
from services.runtime.tls import ClientTls, client_tls

# How far a reply may be sent ahead of its listener; or infinitely.
LEAST_AHEAD_SECONDS = 0.1
MOST_AHEAD_SECONDS = 3600.0

DEFAULT_INSTRUCTIONS = (
    "You are Chroma, an advanced virtual human created by the FlashLabs. "
    "You possess the ability to understand auditory inputs and generate both text and speech."
)


def check_ahead(seconds: float) -> float:
    """The time itself when a reply may be that far ahead of its listener."""
    if not (LEAST_AHEAD_SECONDS <= seconds <= MOST_AHEAD_SECONDS or seconds == math.inf):
        raise ValueError(
            f"it must be {LEAST_AHEAD_SECONDS:g} to {MOST_AHEAD_SECONDS:g} seconds, or infinity, got {seconds:g}"
        )
    return seconds


Address = Annotated[str, AfterValidator(check_address)]


class OrchestratorSettings(ServiceSettings):
    """The orchestrator's settings."""

    reasoner_address: Address = Field(
        description="where the reasoner stage's replicas are: host:port, a list of those by IP address, or "
        "dns:///name:port for all addresses of a name"
    )
    speech_address: Address = Field(description="where the speech stage's replicas are; as of reasoner_address")
    codec_address: Address = Field(description="where the codec stage's replicas are; as of reasoner_address")
    voices: Path | None = Field(
        None, description="folder that created voices are kept in; without one they are lost when the process ends"
    )
    voice_limit: int = Field(1000, ge=0, description="most voices that can be created")
    default_voice: str = Field("ash", description="voice of the sessions that name none")
    instructions: str = Field(
        DEFAULT_INSTRUCTIONS, description="system message of the sessions that give none; empty for no system message"
    )
    ahead_seconds: Annotated[float, AfterValidator(check_ahead)] = Field(
        4.0,
        description="how far replies are made ahead of a listener who began to play at the first packet, in seconds, "
        "where the session does not say; inf: as fast as can be",
    )
    idle_seconds: float = Field(
        300.0, gt=0, description="a session ends after this time without a message and without a reply, in seconds"
    )
    reply_deadline_seconds: float = Field(
        600.0, gt=0, description="longest time that a call to a stage may take, in seconds"
    )
    recovery_limit: int = Field(
        5, ge=0, description="how often a reply may go on at another replica of a stage before it ends as failed"
    )
    stall_seconds: float = Field(
        2.0, gt=0, description="a stage that owes a reply its next output for so long counts as lost, in seconds"
    )
    first_stall_seconds: float = Field(
        20.0, gt=0, description="the same for its first output, before which it may have a long prompt to run"
    )
    start_deadline_seconds: float = Field(
        300.0, gt=0, description="longest wait for the three stages to serve at start-up, in seconds"
    )
    api_keys: Path | None = Field(
        None,
        description="TOML file with the API keys, as chroma-mesh key prints them; without one everybody may do "
        "everything. It is read again when it changes",
    )
    key_session_limit: int = Field(
        16, ge=1, description="most sessions at a time of a key whose entry does not say; a further one is refused"
    )
    stages_tls_ca: Path | None = Field(
        None,
        description="PEM file with the authority of the stages' certificates; without one, connections to them are not "
        "encrypted. It, the certificate and the key are read again when they change",
    )
    stages_tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate that is shown to the stages, and those above it"
    )
    stages_tls_key: Path | None = Field(None, description="PEM file with that certificate's key")
    stages_tls_name: str | None = Field(
        None,
        description="name that the stages' certificates are made out to, where it is not the host of their addresses",
    )
    session_limit: int = Field(
        128,
        ge=1,
        description="most sessions at a time, where the stages could carry more; a further one is RESOURCE_EXHAUSTED",
    )
    orchestrator_count: int = Field(
        1, ge=1, description="orchestrators that share the stages: each admits its part of what they can carry"
    )
    journal: str | None = Field(
        None,
        description="where sessions are kept so that they can go on after their connection or this process is lost: "
        "redis://host:port/db (or rediss://, unix://; Valkey too) for several orchestrators, or a file; without one "
        "in memory, where they outlive their connection, but not this process",
    )
    journal_seconds: float = Field(
        600.0,
        gt=0,
        description="how long a session, its sound included, is kept after its connection was lost, in seconds",
    )
    journal_limit_bytes: int = Field(
        1024**3,
        ge=1,
        description="most that the journal in memory or in a file may take, in bytes; beyond, the sessions that were "
        "lost first are forgotten. Redis has a limit of its own",
    )
    turn_queue_limit: int = Field(
        4, ge=0, description="most user turns of a session that may wait while an earlier one is answered"
    )
    history_limit_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        description="most of a conversation that is kept, sound included, in bytes; before it grows beyond, the oldest "
        "exchanges are forgotten until half of it is left",
    )

    @model_validator(mode="after")
    def _stages_tls_is_whole(self) -> Self:
        _ = self.stages_tls  # raises ValueError
        return self

    @property
    def recovery_rule(self) -> RecoveryRule:
        """How replies are taken up again."""
        return RecoveryRule(self.recovery_limit, self.stall_seconds, self.first_stall_seconds)

    @property
    def stages_tls(self) -> ClientTls | None:
        """TLS towards the stages, if there is any."""
        return client_tls(
            "stages_tls",
            self.stages_tls_ca,
            self.stages_tls_certificate,
            self.stages_tls_key,
            self.stages_tls_name,
        )
