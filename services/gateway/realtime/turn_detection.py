"""Who says when a user turn is over, as the protocol has it."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from client.session_settings import ServerVad
from services.gateway.errors import invalid
from services.gateway.realtime.client_events import TurnDetectionFields

Eagerness = Literal["low", "medium", "high", "auto"]

SILENCE_MS: dict[Eagerness, int] = {"low": 1200, "medium": 700, "auto": 700, "high": 400}
"""Silence that ends a turn in place of a model that understands whether the sentence is complete."""

FIELD = "session.audio.input.turn_detection"


@dataclass(frozen=True)
class TurnDetection:
    """The mesh hears when a turn is over."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    eagerness: Eagerness = "auto"

    @classmethod
    def of(cls, fields: TurnDetectionFields) -> Self:
        """What was asked for, the protocol's defaults for the rest; raises Refusal for what is not offered."""
        if fields.idle_timeout_ms is not None:
            raise invalid(f"{FIELD}.idle_timeout_ms is not offered", f"{FIELD}.idle_timeout_ms", "invalid_value")
        given = {name: value for name in fields.model_fields_set if (value := getattr(fields, name)) is not None}
        detection = cls(**given)
        if detection.type == "semantic_vad":
            for name in ("threshold", "prefix_padding_ms", "silence_duration_ms"):
                if name in given:
                    raise invalid(f"{FIELD}.{name} is server_vad's", f"{FIELD}.{name}", "unknown_parameter")
        elif "eagerness" in given:
            raise invalid(f"{FIELD}.eagerness is semantic_vad's", f"{FIELD}.eagerness", "unknown_parameter")
        return detection

    def body(self) -> dict[str, Any]:
        """The settings as the protocol says them."""
        body = {
            "type": self.type,
            "create_response": self.create_response,
            "interrupt_response": self.interrupt_response,
        }
        if self.type == "semantic_vad":
            return {**body, "eagerness": self.eagerness}
        return {
            **body,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            "idle_timeout_ms": None,
        }

    def server_vad(self) -> ServerVad:
        """The settings as the mesh's client has them."""
        is_semantic = self.type == "semantic_vad"
        return ServerVad(
            threshold=self.threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            silence_duration_ms=SILENCE_MS[self.eagerness] if is_semantic else self.silence_duration_ms,
            barge_in=self.interrupt_response,
            ends_turns=self.create_response,
        )
