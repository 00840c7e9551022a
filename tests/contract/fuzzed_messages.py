"""Random messages, made from what their descriptors say: every field absent, present, or of any value of its type."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Kind = TypeVar("Kind", bound=Message)
Place = tuple[Message, FieldDescriptor]

# Where ranges end, and what the stages' own facts are: hidden size, codes in a frame, codebook size, rates.
EDGES = (0, 1, 2, 3, 7, 8, 9, 47, 48, 49, 447, 448, 1023, 1024, 2047, 2048, 8_000, 16_000, 24_000, 48_000)
FLOATS = (0.0, -0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 2.1, 3600.0, 3601.0, -1.0, 1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan)
TEXTS = (
    "", " ", "\n", "\0", "hello", "ash", "mine", "../ash", "Ash", "ä", "語", "👋🏽", "\u202e", "<|im_end|>", "<|im_",
    "<|AUDIO|>", "<|text_end|>", "word " * 300, "x" * 2001, "<" * 70_000,
)  # fmt: skip
NOISE = np.random.default_rng(5).uniform(-0.5, 0.5, 4_800)
SOUNDS = (
    *(bytes(count) for count in (0, 1, 2, 3, 4, 638, 640, 641, 958, 960, 1_920, 6_400, 48_000, 96_000, 1_500_000)),
    (NOISE * 32767).astype("<i2").tobytes(),
    *((NOISE * scale).astype("<f4").tobytes() for scale in (1e-44, 1, 1e9, 1e38)),
    np.resize(np.float32([0, np.nan]), 800).tobytes(),
    np.resize(np.float32([0, -np.inf]), 800).tobytes(),
    np.resize(np.float32([3.4e38, -3.4e38]), 800).tobytes(),
)
# Lengths of what is repeated, beyond the few that are drawn one by one.
COUNTS = (7, 8, 9, 48, 375, 2_000)
# Most bytes of a row of messages: what is larger than a message may be is for a test of its own.
ROW_BYTES = 2**21

_integers = {
    FieldDescriptor.TYPE_UINT32: st.sampled_from([*EDGES, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([*EDGES, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
}


@st.composite
def any_message(draw: DrawFn, kind: type[Kind]) -> Kind:
    """A message of a type, with fields that its descriptor has and values that the wire carries."""
    return kind(**_fields(draw, kind.DESCRIPTOR))


@st.composite
def spoilt(draw: DrawFn, message: Kind) -> Kind:
    """The message with one field, at any depth, absent or of another value."""
    copy = type(message)()
    copy.CopyFrom(message)
    owner, field = draw(st.sampled_from(list(_places(copy))))
    owner.ClearField(field.name)
    if draw(st.integers(0, 4)):
        value = draw(_values(field))
        owner.MergeFrom(type(owner)(**{field.name: value}))
    return copy


def _fields(draw: DrawFn, descriptor: Descriptor) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.containing_oneof is None and draw(st.booleans()):
            given[field.name] = draw(_values(field))
    for oneof in descriptor.oneofs:
        # One of them is left out less often than any other.
        field = draw(st.sampled_from([*oneof.fields, *oneof.fields, None]))
        if field is not None:
            given[field.name] = draw(_values(field))
    return given


def _values(field: FieldDescriptor) -> SearchStrategy[Any]:
    one = _one_value(field)
    if not field.is_repeated:
        return one
    many = st.tuples(one, st.sampled_from(COUNTS)).map(lambda drawn: _row(*drawn))
    return st.lists(one, max_size=3) | many


def _row(one: Any, count: int) -> list[Any]:
    size_bytes = one.ByteSize() if isinstance(one, Message) else 1
    return [one] * min(count, ROW_BYTES // max(1, size_bytes))


def _one_value(field: FieldDescriptor) -> SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return any_message(GetMessageClass(field.message_type))
        case FieldDescriptor.TYPE_ENUM:
            known = [value.number for value in field.enum_type.values]
            return st.sampled_from([*known, *known, -1, 99, 2**31 - 1])
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return st.sampled_from(FLOATS) | st.floats(width=32)
        case FieldDescriptor.TYPE_STRING:
            return st.sampled_from(TEXTS) | st.text(max_size=12)
        case FieldDescriptor.TYPE_BYTES:
            return st.sampled_from(SOUNDS) | st.binary(max_size=24)
        case kind:
            return _integers[kind]


def _places(message: Message) -> Iterator[Place]:
    """Every field of a message and of those in it; of many in a row, of the first and the last."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        value = getattr(message, field.name)
        if not field.is_repeated:
            inner = [value] if message.HasField(field.name) else []
        else:
            inner = [value[0], value[-1]] if len(value) > 1 else list(value)
        for each in inner:
            yield from _places(each)


def any_floats(message: Message, is_odd: Callable[[np.ndarray], bool]) -> bool:
    """Whether a hidden state in the message has such values; `is_odd` is given all that its bytes may be read as."""
    for owner, field in _places(message):
        if field.full_name == "chroma_mesh.types.v1.Tensor.data":
            data = owner.data
            wide = np.frombuffer(data[: len(data) // 4 * 4], "<f4")
            narrow = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.uint32) << np.uint32(16)
            if is_odd(wide) or is_odd(narrow.view(np.float32)):
                return True
    return False
