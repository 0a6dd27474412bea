"""Records of a shared log, and runs of frames in pieces: what goes in comes out, and nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.dead import Death
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.stores.jetstream.settings import JetStreamSettings
from tensorbus.bus.stores.memory import Memory
from tensorbus.bus.stores.records import VERSION, Command, packed, parse, record
from tensorbus.bus.stores.runs import Runs
from tensorbus.bus.stores.values import Copy, HandOver, Listing, StoredConsumer, StoredDelivery, Terms
from tensorbus.errors import InvalidRequest, StorageError, StoreDamaged, StoreVersion

NOW = datetime(2026, 11, 22, 11, 30, 1, 234567, UTC)
DEATH = Death("c", "0" * 32, "t", 3, None, 2, "refused", NOW)
INFO = MessageInfo(
    "1" * 32, None, "t.x", "k", "sealed", 10, 2, {"a": 1, "b": None, "c": 1.5}, "bytes",
    {"quantizer": {"name": "none"}, "keep": ["x"]}, 1, None, 10, "ff", NOW, NOW, DEATH,
)  # fmt: skip
DELIVERY = StoredDelivery("uid", "1" * 32, 5, 1, 1.25, settled=True, returned=1)
COMMANDS = (
    Command("seal", (INFO, (DELIVERY,), b"\x00\xff", Terms("me", 5, None, 7, 8, "q", None))),
    Command("seal_all", ((Listing(INFO, b"x"), Listing(INFO, b"")),)),
    Command("add_consumer", (StoredConsumer("c", "u", ConsumerConfig("t", start=NOW), 0, NOW, (DELIVERY,)),)),
    Command("take", (HandOver("u", "c", ">", (DELIVERY,), 0, 1 << 62, 3, 2.5, 100),)),
    Command("bury", ("u", 3, DELIVERY, Copy("1" * 32, "2" * 32, "dead.c", None, DEATH, 2.5, ("u", "v")))),
)


@pytest.mark.parametrize("count", [0, 1, 5, 256])
def test_a_record_comes_back_as_it_was(count: int) -> None:
    """Values, their types and their order; also of many commands."""
    commands = tuple(COMMANDS[number % len(COMMANDS)] for number in range(count))
    found = parse(record("writer", 7, [packed(command) for command in commands]))
    assert (found.writer, found.number, len(found.commands)) == ("writer", 7, count)
    for there, command in zip(found.commands, commands, strict=True):
        assert (there.name, there.arguments[1:]) == (command.name, command.arguments[1:])
        assert _plain(there.arguments[0]) == _plain(command.arguments[0])


def _plain(value: object) -> object:
    """A message's JSON: its mappings may hold lists, which come back as tuples."""
    if isinstance(value, MessageInfo):
        return value.to_json() | {"pipeline": {"quantizer": {"name": "none"}, "keep": ("x",)}}
    if isinstance(value, tuple):
        return [_plain(each) for each in cast("tuple[object, ...]", value)]
    if isinstance(value, Listing):
        return _plain(value.info), value.body
    return value


def test_another_release_is_told_apart() -> None:
    """A broker that does not know a record must not guess."""
    with pytest.raises(StoreVersion, match="one release"):
        parse(msgpack.packb([VERSION + 1, "future"]))  # pyright: ignore


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    """Whatever somebody else publishes on the subject."""
    with pytest.raises(StorageError):
        parse(data)


# --- runs --------------------------------------------------------------------------------------------

PIECE = 100


def dropped(_run: str) -> None:
    """Nothing to do."""


@given(st.lists(st.integers(0, 350), max_size=8), st.integers(0, 1200), st.integers(1, 300))
def test_a_run_is_the_bytes_that_were_appended(sizes: list[int], start: int, count: int) -> None:
    """However they were cut, and whether or not they are stored yet; from any offset."""
    runs = Runs(Memory(piece=PIECE))
    file = runs.create("r", dropped)
    whole = b""
    for size in sizes:
        part = os.urandom(size)
        file.append([part[: size // 3], part[size // 3 :]])
        whole += part
    buffer = memoryview(bytearray(count))
    reader = runs.open("r", None)
    found = reader.read_into(buffer, start)
    assert bytes(buffer[:found]) == whole[start : start + count]
    reader.close()
    file.sync()
    file.close()
    later = Runs(runs.pieces)
    reader = later.open("r", len(whole))
    found = reader.read_into(buffer, start)
    assert bytes(buffer[:found]) == whole[start : start + count]


@pytest.mark.parametrize("cut", [0, 1, 99, 100, 101, 250, 399, 400, 430])
def test_another_process_goes_on_behind_any_byte(cut: int) -> None:
    """What lay behind it is gone; what comes then is there."""
    memory = Memory(piece=PIECE)
    first = Runs(memory)
    file = first.create("r", dropped)
    whole = os.urandom(430)
    file.append([whole])
    file.rest()
    second = Runs(memory)
    with_more = second.reopen("r", cut, dropped)
    more = os.urandom(333)
    with_more.append([more])
    with_more.sync()
    with_more.close()
    buffer = memoryview(bytearray(2000))
    reader = Runs(memory).open("r", None)
    found = reader.read_into(buffer, 0)
    assert bytes(buffer[:found]) == whole[:cut] + more
    # The first one was taken for dead: it cannot write over that.
    file.append([os.urandom(300)])
    with pytest.raises(StorageError, match="another broker"):
        file.sync()


def test_what_a_closed_file_has_left_is_not_lost() -> None:
    """Whoever goes on with it in the same process has it."""
    runs = Runs(Memory(piece=PIECE))
    file = runs.create("r", dropped)
    file.append([b"x" * 150])
    file.close()
    again = runs.reopen("r", 130, dropped)
    assert again.size == 130


def test_what_was_cut_off_and_came_again_is_read_as_it_came() -> None:
    """A piece of the same size as before need not be the same piece."""
    runs = Runs(Memory(piece=PIECE))
    buffer = memoryview(bytearray(200))
    for content in (b"a" * 130, b"b" * 130):
        file = runs.create("r", dropped) if content[:1] == b"a" else runs.reopen("r", 50, dropped)
        file.append([content[file.size :]])
        file.sync()
        file.close()
        reader = runs.open("r", None)
        assert reader.read_into(buffer, 0) == 130
        reader.close()
    assert bytes(buffer[:130]) == b"a" * 50 + b"b" * 80


def test_nothing_is_no_run() -> None:
    """To open it is told apart from an empty one."""
    with pytest.raises(StoreDamaged):
        Runs(Memory()).open("r", None)


# --- the address -------------------------------------------------------------------------------------


def test_an_address_says_what_is_to_be_had() -> None:
    """Servers, who we are, the name of the store, and how many copies."""
    found = JetStreamSettings.parse("nats://u:p%40%3A%2C@a:1,b:2?replicas=3&name=x&credentials=/c")
    assert found.servers == ("nats://a:1", "nats://b:2")
    assert (found.encrypted, found.user, found.password) == (False, "u", "p@:,")
    assert "p@:," not in repr(found)
    assert (found.name, found.replicas, found.credentials) == ("x", 3, "/c")
    assert str(found) == "JetStream x at a:1,b:2"


def test_a_login_without_a_password_is_a_token() -> None:
    """As NATS has it."""
    found = JetStreamSettings.parse("tls://secret@a:1?ca=/ca.pem")
    assert (found.encrypted, found.user, found.password, found.ca) == (True, "secret", None, "/ca.pem")


@pytest.mark.parametrize(
    "address",
    ["", "a:1", "http://a:1", "nats://", "nats://a?replicas=9", "nats://a?name=x.y", "nats://a?colour=red"],
)
def test_an_address_that_says_something_else_is_refused(address: str) -> None:
    """With the form that it should have, or what is wrong."""
    with pytest.raises(InvalidRequest):
        JetStreamSettings.parse(address)
