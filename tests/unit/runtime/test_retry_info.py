"""When to try again travels with a refusal."""

import grpc
import pytest
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from client.errors import from_rpc_error as to_client_error
from services.runtime.errors import ResourceExhausted, from_rpc_error, to_rpc_status


@given(seconds=st.none() | st.floats(0, 1e6))
def test_it_comes_out_as_it_went_in(seconds: float | None) -> None:
    sent = rpc_status.to_status(to_rpc_status(ResourceExhausted("later", reason="QUOTA", retry_seconds=seconds)))
    error = grpc.aio.AioRpcError(
        sent.code, grpc.aio.Metadata(), grpc.aio.Metadata.from_tuple(sent.trailing_metadata), sent.details
    )
    for received in (from_rpc_error(error), to_client_error(error, "127.0.0.1:1")):
        assert (received.code, received.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA")
        assert received.retry_seconds == (None if seconds is None else pytest.approx(seconds, abs=1e-9))
