"""Lists of brokers: what is one, which is asked, and what is said when none answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tensorbus import Client
from tensorbus.bus.client import ClientSettings
from tensorbus.bus.client.addresses import Addresses
from tensorbus.bus.client.retry import Retry
from tensorbus.errors import BrokerUnavailable, InvalidRequest, NotFound, TransferStalled

A, B, C = "http://gw1:8080", "http://gw2:8080", "http://gw3:8080"


@pytest.mark.parametrize(
    "given",
    [f"{A},{B}", f" {A} , {B}/ ", [A, B], (A, B + "/"), f"{A}?x=1,{B}#part"],
)
async def test_a_list_is_a_text_or_a_sequence(given: str | Sequence[str]) -> None:
    """With commas, spaces and slashes as people write them; the first one is asked first."""
    client = Client(given)
    assert client.urls == (A, B)
    assert client.url == A
    await client.aclose()


def test_each_may_have_a_path_of_its_own() -> None:
    """Behind proxies they lie where they lie."""
    assert Addresses("https://a/bus/,https://b:444").all == ("https://a/bus", "https://b:444")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "'' is no broker URL"),
        ("gw1:8080", "'gw1:8080' is no broker URL"),
        ([], "no broker's URL is given"),
        (f"{A},", r"empty \(address 2 of 2\)"),
        (f",{A}", r"empty \(address 1 of 2\)"),
        (f"{A},,{B}", r"empty \(address 2 of 3\)"),
        (f"{A},gw2:8080", r"'gw2:8080' \(address 2 of 2\) is no broker URL"),
        (f"{A},ftp://gw2", r"'ftp://gw2' \(address 2 of 2\) is no broker URL"),
        (f"{A},http://gw2:99999", r"\(address 2 of 2\) is no broker URL"),
        ([A, None], r"None \(address 2 of 2\) is no broker URL"),
        (b"http://gw1:8080", "is no broker URL"),
        ([f"{A},{B}"], "is no broker URL"),
        (f"{A},http://user:secret@gw2", r"no user or password \(address 2 of 2\); give a token"),
        (f"{A},{B},{A}/", rf"'{A}/' \(address 3 of 3\) is there twice"),
        ("http://gw1,http://GW1:80/", "is there twice"),
        (f"{A},https://gw2:8080", "some are http and some https"),
    ],
)
def test_a_bad_list_is_refused(given: str | Sequence[str], said: str) -> None:
    """At once, saying which entry it is and what is wrong with it; no password is repeated."""
    with pytest.raises(InvalidRequest, match=said) as caught:
        Client(given)
    assert "secret" not in str(caught.value)


def test_the_one_that_works_is_stayed_with() -> None:
    """Whoever fails at an address moves everybody on by one, however many fail at it."""
    addresses = Addresses([A, B, C])
    for _ in range(3):
        addresses.failed(A, "refused")
    assert addresses.current == B
    addresses.answered(B)
    assert addresses.current == B
    addresses.failed(B, "reset")
    addresses.failed(C, "refused")
    assert addresses.current == A


def test_many_clients_spread() -> None:
    """If they are asked to; each has all addresses in order still."""
    first = {Addresses([A, B, C], shuffle=True).current for _ in range(200)}
    assert first == {A, B, C}
    assert ClientSettings().shuffle is False


async def test_every_address_is_tried_however_long_the_first_one_took() -> None:
    """A stall may take all the time that there is; an error then says what was wrong at each."""
    addresses = Addresses([A, B, C])
    attempts = Retry(1e-9, "a call", addresses)
    addresses.failed(A, "it sent nothing for 60 s")
    await attempts.after(TransferStalled("…"))
    addresses.failed(B, "Connection refused")
    await attempts.after(BrokerUnavailable("…"))
    addresses.failed(C, "Name or service not known")
    with pytest.raises(BrokerUnavailable) as caught:
        await attempts.after(BrokerUnavailable("…"))
    assert str(caught.value) == (
        f"no broker answers, tried {A} (it sent nothing for 60 s), {B} (Connection refused), "
        f"{C} (Name or service not known)"
    )


async def test_a_call_that_is_made_once_is_made_once() -> None:
    """Its error is raised as it is, if only one address had to do with it."""
    error = NotFound("no such message")
    with pytest.raises(NotFound) as caught:
        await Retry(0, "a call", Addresses([A, B])).after(error)
    assert caught.value is error
