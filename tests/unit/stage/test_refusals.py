"""An engine's refusals as errors of the wire."""

import grpc
import pytest

from services.inference.slots import Full, NotFinite, Refused, TooLong
from services.runtime.errors import InvalidArgument, MeshError
from services.stage.refusals import refusals


def raised(error: Exception) -> BaseException:
    with pytest.raises(type(error) if isinstance(error, MeshError) else Exception) as caught, refusals():
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("refusal", "code", "reason"),
    [
        (Full("all 4 slots are taken"), grpc.StatusCode.UNAVAILABLE, "FULL"),
        (Refused("too loud"), grpc.StatusCode.INVALID_ARGUMENT, "REFUSED"),
        (TooLong("9 positions"), grpc.StatusCode.INVALID_ARGUMENT, "TOO_LONG"),
        (NotFinite("a state is no number"), grpc.StatusCode.INTERNAL, "NON_FINITE"),
    ],
)
def test_a_refusal_has_its_code_and_its_words(refusal: Exception, code: grpc.StatusCode, reason: str) -> None:
    error = raised(refusal)
    assert isinstance(error, MeshError)
    assert (error.code, error.reason, error.message) == (code, reason, str(refusal))
    assert error.__cause__ is refusal


@pytest.mark.parametrize("other", [ValueError("a bug"), RuntimeError("a bug"), InvalidArgument("known already")])
def test_other_errors_pass(other: Exception) -> None:
    assert raised(other) is other
