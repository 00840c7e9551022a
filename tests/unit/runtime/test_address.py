"""What stands for the replicas of a service."""

import pytest

from services.runtime.address import check_address, target


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("codec:50051", "codec:50051"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("[::1]:1,[::1]:2,[::2]:1", "ipv6:[::1]:1,[::1]:2,[::2]:1"),
        ("dns:///codec.mesh.svc:50051", "dns:///codec.mesh.svc:50051"),
        ("dns://127.0.0.1:5353/codec:50051", "dns://127.0.0.1:5353/codec:50051"),
    ],
)
def test_an_address_is_one_or_several_or_a_name_for_all(address: str, uri: str) -> None:
    assert check_address(address) == address
    assert target(address) == uri


@pytest.mark.parametrize(
    "address",
    [
        *("", ",", "host", "host:", ":1", "host:0", "host:65536", "http://host:1", "a b:1", "::1:5"),
        *("127.0.0.1:1,", "127.0.0.1:1,127.0.0.2", "127.0.0.1:1, 127.0.0.2:2"),
        *("dns:///codec", "dns:///codec:0", "dns:///a:1,b:1", "dns:codec:1", "unix:/tmp/x:1"),
    ],
)
def test_anything_else_is_refused_with_a_sentence(address: str) -> None:
    with pytest.raises(ValueError, match="an address must be host:port, a list of those, or dns:///name:port"):
        check_address(address)


@pytest.mark.parametrize("address", ["codec:1,codec:2", "127.0.0.1:1,[::1]:1", "127.0.0.1:1,localhost:2"])
def test_a_list_is_of_addresses_of_one_kind(address: str) -> None:
    with pytest.raises(ValueError, match="a list of addresses must be of IPv4 addresses, or of IPv6 addresses"):
        check_address(address)
