"""Tensors and frames survive the wire, and what does not fit is refused."""

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.runtime.errors import Internal, InvalidArgument
from services.runtime.tensors import check_frame, decode_tensor, encode_tensor

F32, BF16 = types_pb2.DATA_TYPE_FLOAT32, types_pb2.DATA_TYPE_BFLOAT16
shapes = hnp.array_shapes(max_dims=3, max_side=7)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def through_the_wire(array: NDArray[np.float32], data_type: types_pb2.DataType) -> NDArray[np.float32]:
    """Encoded, serialised, parsed and decoded."""
    data = encode_tensor(array, data_type).SerializeToString()
    return decode_tensor(types_pb2.Tensor.FromString(data), shape=array.shape, field="step.hidden_state")


@given(hnp.arrays(np.float32, shapes, elements=finite))
def test_float32_comes_back_bit_for_bit(array: NDArray[np.float32]) -> None:
    back = through_the_wire(array, F32)
    assert back.dtype == np.float32
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(np.uint16, shapes))
def test_what_a_bfloat16_model_made_comes_back_bit_for_bit(bits: NDArray[np.uint16]) -> None:
    array = (bits.astype(np.uint32) << 16).view(np.float32)
    array[~np.isfinite(array)] = 0
    assert through_the_wire(array, BF16).tobytes() == array.tobytes()


@given(hnp.arrays(np.float32, shapes, elements=finite))
def test_bfloat16_keeps_eight_bits_of_any_float32(array: NDArray[np.float32]) -> None:
    back = through_the_wire(array, BF16)
    assert np.all(np.abs(back) <= np.abs(array))
    normal = np.abs(array) >= np.finfo(np.float32).tiny
    assert np.all(np.abs(back - array)[normal] <= np.abs(array)[normal] / 128)


@given(st.data())
def test_the_layout_is_row_major_whatever_the_strides(data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(np.float32, shapes, elements=finite)).T
    for data_type in (F32, BF16):
        assert encode_tensor(array, data_type) == encode_tensor(np.ascontiguousarray(array), data_type)


def test_the_bytes_are_little_endian() -> None:
    one = np.ones(1, np.float32)
    assert encode_tensor(one, F32).data == b"\x00\x00\x80\x3f"
    assert encode_tensor(one, BF16).data == b"\x80\x3f"


@pytest.mark.parametrize("data_type", [F32, BF16])
def test_a_decoded_tensor_can_be_written_to(data_type: types_pb2.DataType) -> None:
    assert through_the_wire(np.ones(3, np.float32), data_type).flags.writeable


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (types_pb2.Tensor(data_type=F32, shape=[3], data=bytes(12)), "WRONG_SHAPE"),
        (types_pb2.Tensor(data_type=F32, shape=[2, 1], data=bytes(8)), "WRONG_SHAPE"),
        (types_pb2.Tensor(), "WRONG_SHAPE"),
        (types_pb2.Tensor(shape=[2], data=bytes(8)), "WRONG_DATA_TYPE"),
        (types_pb2.Tensor(data_type=7, shape=[2], data=bytes(8)), "WRONG_DATA_TYPE"),  # type: ignore[arg-type]
        (types_pb2.Tensor(data_type=F32, shape=[2], data=bytes(7)), "WRONG_LENGTH"),
        (types_pb2.Tensor(data_type=F32, shape=[2], data=bytes(4)), "WRONG_LENGTH"),
        (types_pb2.Tensor(data_type=BF16, shape=[2], data=bytes(8)), "WRONG_LENGTH"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(tensor: types_pb2.Tensor, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=r"step\.hidden_state") as caught:
        decode_tensor(tensor, shape=(2,), field="step.hidden_state")
    assert caught.value.reason == reason
    assert caught.value.field is not None
    assert caught.value.field.startswith("step.hidden_state")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("data_type", [F32, BF16])
def test_values_that_are_not_finite_are_neither_sent_nor_taken(value: float, data_type: types_pb2.DataType) -> None:
    array = np.array([1, value], np.float32)
    with pytest.raises(Internal) as sent:
        encode_tensor(array, data_type)
    bits = array.view("<u4") >> (16 if data_type == BF16 else 0)
    tensor = types_pb2.Tensor(
        data_type=data_type, shape=[2], data=bits.astype("<u2" if data_type == BF16 else "<u4").tobytes()
    )
    with pytest.raises(Internal) as taken:
        decode_tensor(tensor, shape=(2,), field="step.hidden_state")
    assert (sent.value.reason, taken.value.reason) == ("NON_FINITE", "NON_FINITE")


@given(st.lists(st.integers(0, 2100), max_size=10))
def test_a_frame_is_taken_exactly_when_it_fits(codes: list[int]) -> None:
    frame = types_pb2.Frame(codes=codes)
    fits = len(codes) == 8 and all(code < 2048 for code in codes)
    if fits:
        assert check_frame(frame, codebook_count=8, codebook_size=2048, field="frame") == codes
    else:
        with pytest.raises(InvalidArgument, match="frame must have") as caught:
            check_frame(frame, codebook_count=8, codebook_size=2048, field="frame")
        assert caught.value.reason == ("CODE_OUT_OF_RANGE" if len(codes) == 8 else "WRONG_CODE_COUNT")


def test_the_code_that_is_out_of_range_is_named() -> None:
    frame = types_pb2.Frame(codes=[0, 2047, 2048])
    with pytest.raises(InvalidArgument, match="below 2048, got 2048 for codebook 2") as caught:
        check_frame(frame, codebook_count=3, codebook_size=2048, field="frames[4]")
    assert caught.value.field == "frames[4].codes[2]"
