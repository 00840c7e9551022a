"""Tensors and frames between numpy and the wire."""

import math

import numpy as np
from chroma_mesh.types.v1 import types_pb2
from numpy.typing import NDArray

from services.runtime.errors import Internal, InvalidArgument


def encode_tensor(array: NDArray[np.float32], data_type: types_pb2.DataType) -> types_pb2.Tensor:
    """The array as a message; bfloat16 keeps the upper 16 bits, which is exact for what a bfloat16 model made.

    Raises Internal with reason NON_FINITE for NaN and infinities.
    """
    assert array.dtype == np.float32, f"expected float32, got {array.dtype}"
    _require_finite(array, "a tensor to be sent")
    match data_type:
        case types_pb2.DATA_TYPE_FLOAT32:
            data = array.astype("<f4", copy=False).tobytes()
        case types_pb2.DATA_TYPE_BFLOAT16:
            bits = np.ascontiguousarray(array).view(np.uint32) >> np.uint32(16)
            data = bits.astype("<u2").tobytes()
        case _:
            raise ValueError(f"data_type must be FLOAT32 or BFLOAT16, got {data_type}")
    return types_pb2.Tensor(data_type=data_type, shape=array.shape, data=data)


def decode_tensor(tensor: types_pb2.Tensor, *, shape: tuple[int, ...], field: str) -> NDArray[np.float32]:
    """A writable float32 array of `shape` from a message.

    Raises InvalidArgument for another shape, data type or length, Internal (NON_FINITE) for NaN and infinities.
    """
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(
            f"{field} must have shape {list(shape)}, got {list(tensor.shape)}",
            reason="WRONG_SHAPE",
            field=f"{field}.shape",
        )
    match tensor.data_type:
        case types_pb2.DATA_TYPE_FLOAT32:
            element_bytes = 4
        case types_pb2.DATA_TYPE_BFLOAT16:
            element_bytes = 2
        case other:
            raise InvalidArgument(
                f"{field} must be FLOAT32 or BFLOAT16, got data type {other}",
                reason="WRONG_DATA_TYPE",
                field=f"{field}.data_type",
            )
    expected_bytes = math.prod(shape) * element_bytes
    if len(tensor.data) != expected_bytes:
        raise InvalidArgument(
            f"{field} must have {expected_bytes} bytes, got {len(tensor.data)}",
            reason="WRONG_LENGTH",
            field=f"{field}.data",
        )
    if element_bytes == 4:
        array = np.frombuffer(tensor.data, dtype="<f4").astype(np.float32)
    else:
        array = (np.frombuffer(tensor.data, dtype="<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    _require_finite(array, field)
    return array.reshape(shape)


def check_frame(frame: types_pb2.Frame, *, codebook_count: int, codebook_size: int, field: str) -> list[int]:
    """The frame's codes, `codebook_count` integers 0 ..< `codebook_size`; anything else raises InvalidArgument."""
    codes = list(frame.codes)
    if len(codes) != codebook_count:
        raise InvalidArgument(
            f"{field} must have {codebook_count} codes, got {len(codes)}",
            reason="WRONG_CODE_COUNT",
            field=f"{field}.codes",
        )
    for codebook_index, code in enumerate(codes):
        if code >= codebook_size:
            raise InvalidArgument(
                f"{field} must have codes below {codebook_size}, got {code} for codebook {codebook_index}",
                reason="CODE_OUT_OF_RANGE",
                field=f"{field}.codes[{codebook_index}]",
            )
    return codes


def _require_finite(array: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(array).all():
        raise Internal(f"{what} must be finite, got NaN or infinity", reason="NON_FINITE")
