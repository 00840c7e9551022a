"""What a client asks for, as OpenAI's API and the Chroma server before this one have it."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from services.gateway.chat.sound_file import SoundFileFormat

MESSAGE_LIMIT = 1024
PART_LIMIT = 64
MAXIMUM_UINT32 = 2**32 - 1

Modality = Literal["text", "audio"]


def _nothing(value: Any) -> Any:
    if value:
        raise ValueError("this is not supported")
    return value


# Literal[False] would take a 0 as well.
Never = Annotated[bool, AfterValidator(_nothing), WithJsonSchema({"type": "boolean", "const": False})]

NO_STOP = {"anyOf": [{"type": "string", "maxLength": 0}, {"type": "array", "maxItems": 0}]}
NoStop = Annotated[str | list[str], AfterValidator(_nothing), WithJsonSchema(NO_STOP)]


class Asked(BaseModel):
    """What clients send: fields of the types that are told, without conversion; others are left alone."""

    model_config = ConfigDict(strict=True)


class TextPart(Asked):
    """Something typed."""

    type: Literal["text"]
    text: str = Field(min_length=1)


class InputAudio(Asked):
    """A sound file in base64; which kind it is, is seen from the file."""

    data: str = Field(min_length=1, description="a WAV, MP3, FLAC or OGG file in base64, by itself or as a data: URL")
    format: Literal["wav", "mp3", "flac", "ogg", "opus"]


class InputAudioPart(Asked):
    """Something said, as OpenAI has it."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioPart(Asked):
    """Something said, as the Chroma server has it."""

    type: Literal["audio"]
    audio: str = Field(min_length=1, description="data:audio/…;base64,… with a WAV, MP3, FLAC or OGG file")


class RefusalPart(Asked):
    """What an assistant said that would not do something."""

    type: Literal["refusal"]
    refusal: str = Field(min_length=1)


UserPart = Annotated[TextPart | InputAudioPart | AudioPart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Text = Annotated[str, Field(min_length=1)]


class SystemMessage(Asked):
    """Instructions; none at all where they are empty."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(max_length=PART_LIMIT, fail_fast=True)]


class UserMessage(Asked):
    """What the user said and typed."""

    role: Literal["user"]
    content: Text | Annotated[list[UserPart], Field(min_length=1, max_length=PART_LIMIT, fail_fast=True)]


class EarlierAudio(Asked):
    """A reply that was given."""

    id: str


class AssistantMessage(Asked):
    """What was answered: as text, or by the id of the sound."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(max_length=PART_LIMIT, fail_fast=True)] | None = None
    audio: EarlierAudio | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class VoiceId(Asked):
    """A voice by its id, which is its name."""

    id: str = Field(min_length=1)


class AudioOutput(Asked):
    """What the reply's sound is to be like."""

    voice: Text | VoiceId | None = None
    format: SoundFileFormat | None = Field(None, description="default: wav; with `stream` pcm16, and nothing else")

    @property
    def voice_name(self) -> str | None:
        """The name of the voice."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class StreamOptions(Asked):
    """What a stream is to have besides."""

    include_usage: bool | None = None


class ResponseFormat(Asked):
    """The form of the text; there is one."""

    type: Literal["text"]


class ChatRequest(Asked):
    """The body of a request for a chat completion.

    Fields that are not here are ignored. Those that ask for what the model cannot do may only have the value that asks
    for nothing.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "chroma-4b", "messages": [{"role": "user", "content": "How do I make a taco?"}]},
                {
                    "model": "chroma-4b",
                    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
                    "modalities": ["text", "audio"],
                    "audio": {"format": "pcm16"},
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
            ]
        }
    )

    model: str
    # The first error is enough: the list of all would take longer than the reply.
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGE_LIMIT, fail_fast=True)]
    modalities: Annotated[list[Modality], Field(min_length=1, max_length=2)] | None = None
    audio: AudioOutput | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAXIMUM_UINT32)] | None = Field(
        None, description="most tokens of text; its sound is as long as it takes to say it"
    )
    max_tokens: Annotated[int, Field(ge=1, le=MAXIMUM_UINT32)] | None = Field(
        None, description="the same, where max_completion_tokens is not given"
    )
    max_frame_count: Annotated[int, Field(ge=1, le=MAXIMUM_UINT32)] | None = Field(
        None, description="most frames of 80 ms of sound; default 1000"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="of the voice: 0 takes the most likely sound; default 0.7"
    )
    top_k: Annotated[int, Field(ge=0, le=MAXIMUM_UINT32)] | None = Field(
        None, description="of the voice: how many codes are drawn among, 0 for all; default 50"
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="of the voice; the same seed gives the same reply; default 0"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_text: Text | None = Field(None, description="what is said in prompt_audio")
    prompt_audio: Text | None = Field(
        None, description="an example of the voice to answer with, up to 30 s: a sound file in base64, or a data: URL"
    )
    return_audio: bool | None = Field(
        None,
        description="whether the answer has the field `audio`, a WAV in base64; default: where none of `modalities`, "
        "`audio` and `stream` is given",
    )
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: Never | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    stop: NoStop | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.prompt_text is None) != (self.prompt_audio is None):
            raise ValueError("prompt_text and prompt_audio go together: an example of a voice and what is said in it")
        if self.prompt_audio is not None and self.audio is not None and self.audio.voice is not None:
            raise ValueError("give audio.voice or prompt_audio, not both")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        if self.stream and self.return_audio:
            raise ValueError("return_audio is a whole file: for a stream ask for modalities ['text', 'audio']")
        if self.stream and self.audio is not None and self.audio.format not in (None, "pcm16"):
            raise ValueError(f"audio.format must be pcm16 with stream: true, got {self.audio.format}")
        if self.return_audio is False and self.modalities is not None and "audio" in self.modalities:
            raise ValueError("modalities ask for audio, return_audio for none")
        if self.modalities is not None and "audio" not in self.modalities and self.audio is not None:
            raise ValueError("audio says how the sound is to be: modalities must have 'audio' then")
        return self

    @property
    def has_sound(self) -> bool:
        """Whether the message has the reply's sound, and its text as the transcript."""
        if self.modalities is None:
            return self.audio is not None and self.return_audio is not False
        return "audio" in self.modalities

    @property
    def has_wav(self) -> bool:
        """Whether the answer has the field of the Chroma server."""
        if self.return_audio is None:
            return not self.stream and self.modalities is None and self.audio is None
        return self.return_audio

    @property
    def sound_format(self) -> SoundFileFormat:
        """How the sound is coded."""
        asked = self.audio.format if self.audio is not None else None
        return asked or ("pcm16" if self.stream else "wav")
