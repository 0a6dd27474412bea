"""Connections within one machine are not paced; all others are what the system is set to."""

from __future__ import annotations

import socket

import pytest

from tensorbus.bus.pacing import unpace, unpace_connected, unpaced_socket
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.listener import listening_socket

if not hasattr(socket, "TCP_CONGESTION"):
    pytest.skip("this system has no congestion control to choose", allow_module_level=True)


def congestion_control(endpoint: socket.socket) -> str:
    """The name of what ``endpoint`` is set to."""
    value = endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return value.partition(b"\0")[0].decode()


def paced(family: int = socket.AF_INET) -> socket.socket:
    """A socket set to BBR, whatever the system's default is."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    except OSError:
        made.close()
        pytest.skip("this system has no BBR, or does not let this process choose it")
    return made


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("127.0.0.1", 8080)),
        (socket.AF_INET, ("127.200.0.9", 8080)),
        (socket.AF_INET6, ("::1", 8080, 0, 0)),
        (socket.AF_INET6, ("::1%lo", 8080, 0, 1)),
    ],
)
def test_to_this_machine_nothing_is_paced(family: int, address: tuple[object, ...]) -> None:
    """BBR gives way to Reno on the loopback interface."""
    with paced(family) as endpoint:
        unpace(endpoint, address)
        assert congestion_control(endpoint) == "reno"


@pytest.mark.parametrize(
    "address", [("192.0.2.7", 8080), ("2001:db8::7", 8080, 0, 0), ("0.0.0.0", 8080), "/run/x", ()]
)
def test_to_others_the_system_decides(address: object) -> None:
    """What goes over a network is paced if the system is set to that; so is what may be from anywhere."""
    with paced() as endpoint:
        unpace(endpoint, address)
        assert congestion_control(endpoint) == "bbr"


def test_what_does_not_pace_stays_as_it_is() -> None:
    """Only pacing is a reason to choose something else than the system does."""
    with socket.socket() as endpoint:
        try:
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        except OSError:
            pytest.skip("this system has no CUBIC, or does not let this process choose it")
        unpace(endpoint, ("127.0.0.1", 8080))
        assert congestion_control(endpoint) == "cubic"


def test_a_peer_on_this_machine_is_told_by_its_address() -> None:
    """A connection that was taken on every address is looked at once it is there, from both of its ends."""
    with paced() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        with socket.create_connection(("127.0.0.1", listening.getsockname()[1])) as there:
            taken, _ = listening.accept()
            with taken:
                assert congestion_control(taken) == "bbr"
                for end in taken, there:
                    unpace_connected(end)
                    assert congestion_control(end) != "bbr"


def test_connections_of_a_broker_and_a_client_on_one_machine_are_not_paced() -> None:
    """From the first byte on, whatever the system is set to: BBR goes on pacing once it has begun."""
    with listening_socket(ServerSettings(host="127.0.0.1", port=0)) as listening:
        address = listening.getsockname()
        with unpaced_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", address)) as client:
            client.connect(address)
            taken, _ = listening.accept()
            with taken:
                assert "bbr" not in (congestion_control(taken), congestion_control(client))
