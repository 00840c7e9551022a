"""What the orchestrator can be told."""

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from services.runtime.settings import ServiceSettings

# A name, an IPv4 address, or an IPv6 address in brackets; then a port.
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")

# How far a reply may be sent ahead of its listener; or infinitely.
LEAST_AHEAD_SECONDS = 0.1
MOST_AHEAD_SECONDS = 3600.0

DEFAULT_INSTRUCTIONS = (
    "You are Chroma, an advanced virtual human created by the FlashLabs. "
    "You possess the ability to understand auditory inputs and generate both text and speech."
)


def check_address(address: str) -> str:
    """The address itself when it is host:port."""
    match = ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"an address must be host:port with a port of 1 to 65535, got {address!r}")
    return address


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

    reasoner_address: Address = Field(description="host:port of the reasoner stage")
    speech_address: Address = Field(description="host:port of the speech stage")
    codec_address: Address = Field(description="host:port of the codec stage")
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
    start_deadline_seconds: float = Field(
        300.0, gt=0, description="longest wait for the three stages to serve at start-up, in seconds"
    )
    session_limit: int = Field(128, ge=1, description="most sessions at a time; a further one is UNAVAILABLE")
    turn_queue_limit: int = Field(
        4, ge=0, description="most user turns of a session that may wait while an earlier one is answered"
    )
    history_limit_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        description="most of a conversation that is kept, sound included, in bytes; before it grows beyond, the oldest "
        "exchanges are forgotten until half of it is left",
    )
