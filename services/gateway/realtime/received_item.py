"""Messages and sound of a client's, checked before the mesh is told of them: what it refuses ends its session."""

import base64
import binascii
import re

from client.message import Role
from services.gateway.errors import invalid
from services.gateway.realtime.audio_formats import AudioFormat
from services.gateway.realtime.client_events import ContentFields, ItemFields
from services.gateway.realtime.ids import new_id
from services.gateway.realtime.items import MINIMUM_SOUND_SECONDS, Item, Part, Said, Typed

LONGEST_TURN_SECONDS = 300
"""What the mesh takes of one turn."""

# How the tokens look by which the model's prompt is divided.
SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")


def read_sound(text: str, audio_format: AudioFormat, param: str) -> bytes:
    """The bytes of sound in base64; raises Refusal."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{param} must be base64: {error}", param, "invalid_value") from None
    if len(data) % audio_format.sample_bytes:
        raise invalid(
            f"{param} must hold whole samples of {audio_format.sample_bytes} bytes, got {len(data)} bytes",
            param,
            "invalid_value",
        )
    return data


def read_item(fields: ItemFields, audio_format: AudioFormat) -> Item:
    """The item that a client adds, its sound in the session's format; raises Refusal."""
    if fields.type != "message":
        raise invalid(
            f"item.type must be 'message', got {fields.type[:80]!r}: the model calls no functions",
            "item.type",
            "invalid_value",
        )
    if fields.model_extra:
        name = next(iter(fields.model_extra))
        raise invalid(f"there is no item.{name[:80]}", f"item.{name[:80]}", "unknown_parameter")
    if fields.role is None:
        raise invalid("item.role is required", "item.role", "missing_required_parameter")
    if not fields.content:
        raise invalid("item.content must have a part", "item.content", "missing_required_parameter")
    role = Role(fields.role)
    parts = [_read_part(part, role, audio_format, f"item.content[{i}]") for i, part in enumerate(fields.content)]
    return Item(fields.id or new_id("item"), role, parts, is_answered=role is not Role.USER)


def _read_part(fields: ContentFields, role: Role, audio_format: AudioFormat, param: str) -> Part:
    match fields.type:
        case "input_text" | "output_text" | "text" if fields.text:
            if special := SPECIAL_TOKEN.search(fields.text):
                raise invalid(f"{param}.text may not have {special[0]!r}", f"{param}.text", "invalid_value")
            return Typed(fields.text)
        case "input_text" | "output_text" | "text":
            raise invalid(f"{param}.text must not be empty", f"{param}.text", "invalid_value")
        case "output_audio" if role is Role.ASSISTANT and fields.transcript:
            return Typed(fields.transcript)
        case "input_audio" if role is Role.USER:
            data = read_sound(fields.audio or "", audio_format, f"{param}.audio")
            seconds = len(data) / audio_format.sample_bytes / audio_format.rate_hz
            if not MINIMUM_SOUND_SECONDS < seconds <= LONGEST_TURN_SECONDS:
                raise invalid(
                    f"{param}.audio must be longer than {MINIMUM_SOUND_SECONDS:g} s and at most "
                    f"{LONGEST_TURN_SECONDS} s, got {seconds:g} s",
                    f"{param}.audio",
                    "invalid_value",
                )
            return Said(data, audio_format)
        case kind:
            raise invalid(f"{param}.type cannot be {kind[:80]!r} for {role.value}", f"{param}.type", "invalid_value")
