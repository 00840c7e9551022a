"""The settings of a socket, and of a single response."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from client.session_settings import ReplySettings
from services.gateway.errors import invalid
from services.gateway.realtime.audio_formats import FORMATS, PCM, AudioFormat
from services.gateway.realtime.client_events import FormatFields, ReplyFields, ResponseFields, SessionFields
from services.gateway.realtime.turn_detection import TurnDetection
from services.gateway.voice_names import VoiceNames

Modality = Literal["audio", "text"]

MAXIMUM_OUTPUT_TOKENS = 4096

UNLIMITED = 2**31 - 1
"""Said to the mesh, for an absent limit would leave one that was there before."""


@dataclass(frozen=True)
class ReplyConfig:
    """What a reply is given with; None leaves it to the mesh."""

    voice: str
    voices: VoiceNames
    modality: Modality = "audio"
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None

    def changed(self, fields: ReplyFields, at: str) -> Self:
        """The settings with those that were given; raises Refusal. `at` is where the fields stand in their event."""
        _refuse_tools(fields, at)
        given = fields.model_fields_set
        changes: dict[str, Any] = {}
        if (voice := voice_of(fields)) is not None:
            _check_voice(voice, self.voices, f"{at}.audio.output.voice")
            changes["voice"] = voice
        if fields.output_modalities is not None:
            # Sound always has a transcript, so that both together are what sound alone is.
            changes["modality"] = "audio" if "audio" in fields.output_modalities else "text"
        if fields.instructions is not None:
            changes["instructions"] = fields.instructions
        if "max_output_tokens" in given:
            limit = fields.max_output_tokens
            if isinstance(limit, int) and not 1 <= limit <= MAXIMUM_OUTPUT_TOKENS:
                raise invalid(
                    f"{at}.max_output_tokens must be 1 to {MAXIMUM_OUTPUT_TOKENS} or 'inf', got {limit}",
                    f"{at}.max_output_tokens",
                    "invalid_value",
                )
            changes["max_output_tokens"] = limit if isinstance(limit, int) else None
        if fields.temperature is not None:
            changes["temperature"] = fields.temperature
        return replace(self, **changes)

    def reply_settings(self, further_instructions: str = "") -> ReplySettings:
        """The settings as the mesh's client has them; `further_instructions` are those of the conversation's items."""
        instructions = self.instructions
        if further_instructions:
            instructions = f"{instructions}\n\n{further_instructions}" if instructions else further_instructions
        return ReplySettings(
            voice=self.voices.answering(self.voice),
            instructions=instructions,
            max_step_count=self.max_output_tokens or UNLIMITED,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class SessionConfig:
    """All settings of a socket."""

    model: str
    reply: ReplyConfig
    input_format: AudioFormat = PCM
    output_format: AudioFormat = PCM
    turn_detection: TurnDetection | None = field(default_factory=TurnDetection)
    tracing: str | dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    truncation: str | dict[str, Any] = "auto"

    @property
    def is_listening(self) -> bool:
        """Whether the mesh is to hear when a turn is over."""
        return self.turn_detection is not None

    def changed(self, fields: SessionFields) -> Self:
        """The settings with those that were given; raises Refusal for what is wrong or not offered."""
        if fields.model is not None and fields.model != self.model:
            raise invalid(
                f"session.model is {self.model!r} and stays so, got {fields.model[:80]!r}",
                "session.model",
                "invalid_value",
            )
        changes: dict[str, Any] = {"reply": self.reply.changed(fields, "session")}
        heard = fields.audio.input if fields.audio else None
        if heard is not None:
            if heard.format is not None:
                changes["input_format"] = _format(heard.format, "session.audio.input.format")
            if "turn_detection" in heard.model_fields_set:
                detection = heard.turn_detection
                changes["turn_detection"] = None if detection is None else TurnDetection.of(detection)
        spoken = fields.audio.output if fields.audio else None
        if spoken is not None:
            if spoken.format is not None:
                changes["output_format"] = _format(spoken.format, "session.audio.output.format")
            if spoken.speed not in (None, 1):
                param = "session.audio.output.speed"
                raise invalid(f"{param} must be 1, got {spoken.speed:g}", param, "invalid_value")
        if "tracing" in fields.model_fields_set:
            changes["tracing"] = fields.tracing
        for name in ("tool_choice", "truncation"):
            if (value := getattr(fields, name)) is not None:
                changes[name] = value
        return replace(self, **changes)

    def body(self, session_id: str) -> dict[str, Any]:
        """The settings as the protocol says them."""
        reply = self.reply
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": self.model,
            "output_modalities": [reply.modality],
            "instructions": reply.instructions or "",
            "tools": [],
            "tool_choice": self.tool_choice,
            "max_output_tokens": reply.max_output_tokens or "inf",
            "tracing": self.tracing,
            "truncation": self.truncation,
            "prompt": None,
            "expires_at": 0,
            "include": None,
            "audio": {
                "input": {
                    "format": self.input_format.body(),
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": None if self.turn_detection is None else self.turn_detection.body(),
                },
                "output": {"format": self.output_format.body(), "voice": reply.voice, "speed": 1.0},
            },
        }


def voice_of(fields: ReplyFields) -> str | None:
    """The voice that is asked for."""
    output = fields.audio.output if fields.audio else None
    voice = None if output is None else output.voice
    return voice if voice is None or isinstance(voice, str) else voice.id


def check_response(fields: ResponseFields, output_format: AudioFormat) -> None:
    """Refuses what a single response cannot have."""
    if fields.conversation not in (None, "auto"):
        raise invalid(
            "response.conversation must be 'auto': a response outside of the conversation is not offered",
            "response.conversation",
            "invalid_value",
        )
    if fields.input is not None:
        raise invalid(
            "response.input is not offered: a response answers the conversation", "response.input", "invalid_value"
        )
    output = fields.audio.output if fields.audio else None
    if output is None or output.format is None:
        return
    if _format(output.format, "response.audio.output.format") is not output_format:
        param = "response.audio.output.format"
        raise invalid(
            f"{param} is the session's, {output_format.name}, got {output.format.type}", param, "invalid_value"
        )


def _format(fields: FormatFields, param: str) -> AudioFormat:
    audio_format = FORMATS[fields.type]
    if fields.rate not in (None, audio_format.rate_hz):
        raise invalid(
            f"{param}.rate must be {audio_format.rate_hz} for {fields.type}, got {fields.rate}",
            f"{param}.rate",
            "invalid_value",
        )
    return audio_format


def _check_voice(name: str, voices: VoiceNames, param: str) -> None:
    if not voices.has(name):
        known = ", ".join(sorted(voices.names))
        raise invalid(f"{param} must be one of {known}; got {name[:80]!r}", param, "invalid_value")


def _refuse_tools(fields: ReplyFields, at: str) -> None:
    if fields.tools:
        raise invalid(f"{at}.tools must be empty: the model calls no functions", f"{at}.tools", "invalid_value")
    if fields.prompt is not None:
        raise invalid(f"{at}.prompt is not offered: there are no stored prompts", f"{at}.prompt", "invalid_value")
