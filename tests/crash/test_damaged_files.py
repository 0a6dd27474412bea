"""Stored bytes that change under the broker: never delivered, and reported."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashing.payloads import body, unpack
from crashing.wire import Answer, Unreachable, Wire
from crashing.world import Plan, World

MIB = 1 << 20
CONTENT = random.Random(0).randbytes(3 * MIB)
SMALL = random.Random(1).randbytes(5000)


def flip(path: Path) -> None:
    """One bit in the midst."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def overwrite(path: Path) -> None:
    """A page of zeros, as a torn write leaves it; the size stays."""
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(4096))


def truncate(path: Path) -> None:
    """The last page is gone."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)


def lengthen(path: Path) -> None:
    """Something was written behind the end."""
    with path.open("ab") as file:
        file.write(b"more")


def exchange(path: Path) -> None:
    """Another valid message lies in the file's place."""
    path.write_bytes(body(CONTENT[::-1]))


def remove(path: Path) -> None:
    """No file at all."""
    path.unlink()


def publish(wire: Wire, content: bytes, topic: str = "t") -> dict[str, Any]:
    """The receipt."""
    return wire.call("POST", f"/v1/topics/{topic}/messages", content).json


def frames(wire: Wire, name: str) -> Answer | None:
    """The whole answer to who wants the body; None if the connection broke in its midst."""
    try:
        return wire.call("GET", f"/v1/messages/{name}/frames")
    except Unreachable:
        return None


def never_delivered(wire: Wire, name: str) -> None:
    """Whoever asks for the message's body, at any time, gets an error or a broken connection."""
    for _ in range(3):
        answer = frames(wire, name)
        assert answer is None or answer.status >= 400, f"delivered: {answer.status}"


def reported(world: World, wire: Wire, name: str) -> None:
    """It is counted, logged by its id, and hands nothing to consumers."""
    metrics = wire.call("GET", "/metrics").body.decode()
    damaged = [line for line in metrics.splitlines() if line.startswith("tensorbus_damaged_messages ")]
    assert damaged and float(damaged[0].split()[1]) == 1, damaged
    assert name in "".join(line for line in world.broker_log.splitlines() if "INFO" not in line)
    answer = wire.post("/v1/consumers/late/deliveries", {"max": 8, "wait": 0})
    assert name not in [one["message"]["id"] for one in answer.json["deliveries"]]


def file_of(data: Path, name: str) -> Path:
    """The frame file of a message."""
    return next(data.rglob(f"{name}.frames"))


CASES = [
    *((damage, "running") for damage in (flip, overwrite, truncate, lengthen, exchange, remove)),
    *((damage, "stopped") for damage in (flip, truncate, remove)),
]


@pytest.mark.parametrize(("damage", "moment"), CASES)
def test_a_damaged_file_is_never_delivered(
    tmp_path: Path, damage: Callable[[Path], None], moment: str
) -> None:
    """Whatever happens to a frame file, while the broker runs or not: whoever asks gets an error, never other
    bytes; the damage is counted and logged; the messages beside it are delivered as before.
    """
    with World(tmp_path, Plan({}), 0) as world:
        world.start_broker()
        wire = Wire(world.port)
        wire.call("PUT", "/v1/consumers/late", b'{"filter": "t"}')
        hurt, whole = publish(wire, CONTENT)["id"], publish(wire, CONTENT)["id"]
        path = file_of(world.data, hurt)
        if moment == "running":
            assert frames(wire, hurt) is not None
        else:
            assert world.stop_broker() == 0
        damage(path)
        if moment != "running":
            world.start_broker()
            wire = Wire(world.port)
        never_delivered(wire, hurt)
        reported(world, wire, hurt)
        answer = frames(wire, whole)
        assert answer is not None and unpack(answer.body) == CONTENT
        # A new start knows it still, and a deletion ends the matter.
        world.kill_broker()
        world.start_broker()
        wire = Wire(world.port)
        never_delivered(wire, hurt)
        assert wire.call("DELETE", f"/v1/messages/{hurt}").status == 204
        assert wire.call("GET", f"/v1/messages/{hurt}").status == 404
        assert not list(world.data.rglob(f"*{hurt}*"))


def test_a_damaged_row_is_never_delivered(tmp_path: Path) -> None:
    """A small message, which has its frames in a row, is checked like a large one."""
    with World(tmp_path, Plan({}), 0) as world:
        world.start_broker()
        wire = Wire(world.port)
        wire.call("PUT", "/v1/consumers/late", b'{"filter": "t"}')
        hurt, whole = publish(wire, SMALL)["id"], publish(wire, SMALL)["id"]
        assert world.stop_broker() == 0
        with sqlite3.connect(world.data / "meta.db") as database:
            query = "SELECT seq, data FROM bodies JOIN messages USING (seq) WHERE id = ?"
            seq, data = database.execute(query, (hurt,)).fetchone()
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 1
            database.execute("UPDATE bodies SET data = ? WHERE seq = ?", (bytes(changed), seq))
        world.start_broker()
        wire = Wire(world.port)
        wanted = {"max": 8, "wait": 0, "inline": 64 << 10}
        wire.post("/v1/consumers/late/deliveries", wanted)
        never_delivered(wire, hurt)
        reported(world, wire, hurt)
        answer = frames(wire, whole)
        assert answer is not None and unpack(answer.body) == SMALL


def test_an_open_upload_damaged_while_the_broker_was_down(tmp_path: Path) -> None:
    """Of an upload that goes on after a restart, only what is whole counts; the rest is sent again."""
    with World(tmp_path, Plan({}), 0) as world:
        world.start_broker()
        wire, whole = Wire(world.port), body(CONTENT)
        tus = {"Tus-Resumable": "1.0.0"}
        made = wire.call("POST", "/v1/topics/t/uploads", b"", tus | {"Upload-Length": str(len(whole))})
        path = made.headers["location"][made.headers["location"].index("/v1/") :]
        patch = tus | {"Content-Type": "application/offset+octet-stream"}
        half = len(whole) * 2 // 3
        assert wire.call("PATCH", path, whole[:half], patch | {"Upload-Offset": "0"}).status == 204
        world.kill_broker()
        (kept,) = world.data.rglob("*.frames")
        flip(kept)
        world.start_broker()
        wire = Wire(world.port)
        offset = int(wire.call("HEAD", path, headers=tus).headers["upload-offset"])
        assert offset <= half // 2
        done = wire.call("PATCH", path, whole[offset:], patch | {"Upload-Offset": str(offset)})
        assert done.status == 204
        (one,) = wire.call("GET", "/v1/messages").json["messages"]
        answer = frames(wire, one["id"])
        assert answer is not None and answer.body == whole
