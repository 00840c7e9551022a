"""`/v1/audio/voices`: the voices that replies are given with."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

import client.voice
from client.pcm import VOICE_RATE_HZ, Samples
from client.voice import VoiceExample
from services.gateway.authorization import bearer
from services.gateway.departure import attended
from services.gateway.errors import Refusal, invalid
from services.gateway.front import front_of
from services.gateway.given_sound import read_base64_sound, read_sound

EXAMPLE_SECONDS = 30
FORM_FIELD_LIMIT_BYTES = 1024 * 1024
FORM_FIELD_LIMIT = 16

router = APIRouter(prefix="/v1/audio", tags=["voices"])


class Voice(BaseModel):
    """A voice; its id is its name. `transcript` is what its example says, `is_private` that other keys don't see it."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    type: Literal["audio_sample"] = "audio_sample"
    name: str
    transcript: str
    example_seconds: float
    is_default: bool
    is_builtin: bool
    is_private: bool

    @classmethod
    def of(cls, voice: client.voice.Voice) -> Self:
        """A voice of the mesh."""
        return cls(id=voice.name, **vars(voice))


class VoiceList(BaseModel):
    """All voices."""

    object: Literal["list"] = "list"
    data: list[Voice]


class VoiceDeleted(BaseModel):
    """A voice that is no more."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    deleted: Literal[True] = True


class NewVoice(BaseModel):
    """A voice to be, with an example of it."""

    model_config = ConfigDict(strict=True)

    name: str = Field(pattern="^[a-z0-9_-]{1,64}$")
    transcript: str = Field(min_length=1, description="what is said in the example")
    audio: str = Field(
        min_length=1, description="the example, up to 30 s: a WAV, MP3, FLAC or OGG file in base64, or a data: URL"
    )
    shared: bool = Field(False, description="whether other keys may use it; without keys all voices are shared")


class NewVoiceForm(BaseModel):
    """The same as a form with a file."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["file"]}, {"required": ["audio_sample"]}]},
    )

    name: str = Field(pattern="^[a-z0-9_-]{1,64}$")
    transcript: str = Field(min_length=1, description="what is said in the example")
    file: Any = Field(
        None,
        json_schema_extra={"type": "string", "format": "binary", "description": "the example; or `audio_sample`"},
    )
    audio_sample: Any = Field(
        None, json_schema_extra={"type": "string", "format": "binary", "description": "the same, as OpenAI calls it"}
    )
    shared: bool = False

    @model_validator(mode="after")
    def _has_one_file(self) -> Self:
        given = [it for it in (self.file, self.audio_sample) if it is not None]
        if len(given) != 1 or not isinstance(given[0], UploadFile):
            raise ValueError("the form must have the field `file`, or `audio_sample`, with a file; not both")
        return self


@dataclass(frozen=True)
class GivenVoice:
    """What was sent of a voice: the example in base64, or the file itself."""

    name: str
    transcript: str
    shared: bool
    sound: str | bytes

    def samples(self) -> Samples:
        """The example at 24,000 Hz; Refusal for what is no sound. It blocks."""
        rate, limit = VOICE_RATE_HZ, EXAMPLE_SECONDS
        if isinstance(self.sound, str):
            return read_base64_sound(self.sound, "audio", sample_rate_hz=rate, maximum_seconds=limit)
        return read_sound(self.sound, "file", sample_rate_hz=rate, maximum_seconds=limit)


class FormInMemory(MultiPartParser):
    """Reads a form without writing its files to a disk; the body, which is limited, is in memory already."""

    spool_max_size = 2**63 - 1


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": NewVoice.model_json_schema()},
            "multipart/form-data": {"schema": NewVoiceForm.model_json_schema()},
        },
    }
}


@router.get("/voices")
async def list_voices(request: Request) -> VoiceList:
    """The voices, by name."""
    voices = await front_of(request).mesh(bearer(request)).voices()
    return VoiceList(data=[Voice.of(voice) for voice in voices])


@router.get("/voices/{voice_id}")
async def get_voice(request: Request, voice_id: str) -> Voice:
    """One voice."""
    for voice in await front_of(request).mesh(bearer(request)).voices():
        if voice.name == voice_id:
            return Voice.of(voice)
    raise Refusal(404, "invalid_request_error", f"there is no voice {voice_id!r}", "voice_id", "voice_not_found")


@router.post("/voices", openapi_extra=BODY)
async def create_voice(request: Request) -> Voice:
    """Adds a voice from an example and what is said in it, as JSON or as a form."""
    front = front_of(request)
    mesh = front.mesh(bearer(request))
    new = await _new_voice(request)
    async with attended(request, front.settings.reply_seconds):
        example = VoiceExample(new.transcript, await asyncio.to_thread(new.samples))
        return Voice.of(await mesh.add_voice(new.name, example, shared=new.shared))


@router.delete("/voices/{voice_id}")
async def delete_voice(request: Request, voice_id: str) -> VoiceDeleted:
    """Removes a voice that was added; sessions that speak with it go on."""
    await front_of(request).mesh(bearer(request)).remove_voice(voice_id)
    return VoiceDeleted(id=voice_id)


async def _new_voice(request: Request) -> GivenVoice:
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "application/json":
            return await _from_json(request)
        case "multipart/form-data":
            return await _from_form(request)
        case other:
            raise Refusal(
                415,
                "invalid_request_error",
                f"a voice is sent as application/json or multipart/form-data, got {other or 'no content-type'!r}",
                code="unsupported_media_type",
            )


async def _from_json(request: Request) -> GivenVoice:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:  # bytes that are no text, text that is no JSON
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    try:
        new = NewVoice.model_validate(body)
    except ValidationError as error:
        raise _as_request_error(error, body) from None
    return GivenVoice(new.name, new.transcript, new.shared, new.audio)


async def _from_form(request: Request) -> GivenVoice:
    parser = FormInMemory(
        request.headers,
        request.stream(),
        max_files=2,
        max_fields=FORM_FIELD_LIMIT,
        max_part_size=FORM_FIELD_LIMIT_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message}", code="invalid_form") from None
    fields = dict(form)
    try:
        new = NewVoiceForm.model_validate(fields)
        (file,) = (it for it in (new.file, new.audio_sample) if it is not None)
        return GivenVoice(new.name, new.transcript, new.shared, await file.read())
    except ValidationError as error:
        raise _as_request_error(error, fields) from None
    finally:
        await form.close()


def _as_request_error(error: ValidationError, body: Any) -> RequestValidationError:
    entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
    return RequestValidationError(entries, body=body)
