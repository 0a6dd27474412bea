"""What only the store in JetStream has: its streams, snapshots, refusals, and a server that goes away."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from storing import LaggingReplica, NatsServers
from storing.bodies import frames, publish, read
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.messages import Receipt
from tensorbus.bus.stores import strays
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore
from tensorbus.errors import BrokerUnavailable, StorageError, StoreUnavailable

SETTINGS = BrokerSettings(sweep_interval=0)


@pytest.fixture
def where(tmp_path: Path, nats_server: NatsServers) -> JetStreamSettings:
    """A new store on the server of all tests."""
    name = "s" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    return JetStreamSettings.parse(f"{nats_server.address}&name={name}")


async def go_on(upload: Upload, rest: bytes) -> Receipt:
    """The rest of an upload."""
    async with upload.turn(lambda: None):
        await upload.write(rest)
        return await upload.seal()


async def test_a_snapshot_takes_the_place_of_the_log(where: JetStreamSettings) -> None:
    """A broker that comes later has all that was before, and what came since; and so again."""
    store = JetStreamStore(where)
    small, large = frames(100), frames(1_300_000)
    async with Broker(store, SETTINGS) as broker:
        await broker.ensure_consumer("c", ConsumerConfig(">"))
        first = await publish(broker, large, "large")
        for number in range(30):
            await publish(broker, small, f"{number}")
        (delivery,) = await broker.pull("c")
        await store.shorten()
        last = await publish(broker, small, "last")
        await store.shorten()
        assert await store.log_length() < 5
        after = await publish(broker, small, "after")
    async with Broker(JetStreamStore(where), SETTINGS) as broker:
        assert (await broker.topics())[0].messages == 33
        assert (await publish(broker, small, "7")).duplicate
        await broker.ack("c", delivery.token)
        assert await read(broker, first.id) == large
        assert [await read(broker, each.id) for each in (last, after)] == [small, small]


async def test_one_that_stands_by_reads_and_decides_nothing(where: JetStreamSettings) -> None:
    """Until it takes the lead; who had it cannot change anything from then on."""
    body = frames(700_000)
    async with (
        Broker(JetStreamStore(where), SETTINGS) as leader,
        Broker(JetStreamStore(where, stand_by=True), SETTINGS) as other,
    ):
        receipt = await publish(leader, body, "k")
        assert (leader.leading, other.leading) == (True, False)
        assert await read(other, receipt.id) == body
        with pytest.raises(BrokerUnavailable):
            await other.delete(receipt.id)
        assert await other.lead()
        with pytest.raises(BrokerUnavailable):
            await leader.delete(receipt.id)
        assert (leader.leading, other.leading) == (False, True)
        assert (await publish(other, body, "k")).duplicate
        await other.delete(receipt.id)


async def test_the_frames_of_an_upload_that_was_overtaken_do_not_count(where: JetStreamSettings) -> None:
    """A broker that is taken for dead in the midst of an upload: the other goes on with it, and it fails."""
    body = frames(5_000_000)
    async with (
        Broker(JetStreamStore(where), SETTINGS) as old,
        Broker(JetStreamStore(where, stand_by=True), SETTINGS) as new,
    ):
        upload = await old.create_upload("t", "k", len(body))
        assert isinstance(upload, Upload)
        async with upload.turn(lambda: None):
            await upload.write(body[:2_000_000])
            await upload.flush()
        assert await new.lead()
        found = new.upload(upload.id)
        assert found is not None
        async with found.turn(lambda: None):
            assert found.offset is not None
            assert 0 < found.offset <= 2_000_000
            await found.write(body[found.offset : 3_000_000])
            await found.flush()
        with pytest.raises((StorageError, BrokerUnavailable)):
            await go_on(upload, body[2_000_000:])
        async with found.turn(lambda: None):
            assert found.offset is not None
            await found.write(body[found.offset :])
            receipt = await found.seal()
        assert await read(new, receipt.id) == body


async def test_frames_that_nobody_needs_are_removed(where: JetStreamSettings) -> None:
    """Of messages that were deleted, of uploads that were given up, and of a broker that died."""
    store = JetStreamStore(where)
    body = frames(1_500_000)
    async with Broker(store, SETTINGS) as broker:
        receipt = await publish(broker, body)
        upload = await broker.begin("t", None, len(body))
        assert isinstance(upload, Upload)
        async with upload:
            await upload.write(body[:1_200_000])
            await upload.flush()
        assert await store.stored_pieces() > 0
        await broker.delete(receipt.id)
        await broker.sweep()
        assert await store.stored_pieces() == 0


async def test_what_was_written_into_a_run_that_is_gone_is_removed(
    where: JetStreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a broker that had been taken for dead and went on; and nothing else with it."""
    body = frames(1_500_000)
    store = JetStreamStore(where)
    async with Broker(store, SETTINGS) as broker:
        kept = await publish(broker, body)
        lost = await broker.begin("t", None, len(body))
        assert isinstance(lost, Upload)
        async with lost:
            await lost.write(body[:600_000])
            await lost.flush()
        parked = await broker.create_upload("t", "k", len(body))
        assert isinstance(parked, Upload)
        async with parked.turn(lambda: None):
            await parked.write(body[:1_200_000])
            await parked.flush()
        await broker.sweep()
        await store.shorten()
        before = await store.stored_pieces()
        async with await nats.connect(where.servers[0]) as dead:  # pyright: ignore[reportUnknownMemberType]
            for number in (1, 2):
                await dead.request(f"{where.name}.f.{lost.id}.{number}", body[:500_000])
    async with Broker(JetStreamStore(where), SETTINGS) as broker:
        await broker.sweep()
    monkeypatch.setattr(strays, "OLD", 0.0)
    store = JetStreamStore(where, stand_by=True)
    async with Broker(store, SETTINGS) as broker:
        assert await store.stored_pieces() == before + 2  # it may have been new
        assert await broker.lead()
        await broker.sweep()
        assert await store.stored_pieces() == before
        assert await read(broker, kept.id) == body
        found = broker.upload(parked.id)
        assert found is not None
        async with found.turn(lambda: None):
            assert found.offset is not None
            assert 1_000_000 < found.offset <= 1_200_000
            await found.write(body[found.offset :])
            receipt = await found.seal()
        assert await read(broker, receipt.id) == body
    async with Broker(JetStreamStore(where), SETTINGS) as broker:  # from the snapshot
        assert await read(broker, receipt.id) == body


async def test_a_server_that_takes_no_large_messages_is_named(tmp_path: Path) -> None:
    """Before anything is begun, with what to change."""
    with (
        NatsServers(tmp_path, max_payload=100_000) as servers,
        pytest.raises(StorageError, match="max_payload"),
    ):
        await Broker(JetStreamStore(JetStreamSettings.parse(servers.address))).start()


async def test_no_server_is_a_clear_error() -> None:
    """And soon."""
    where = replace(JetStreamSettings.parse("nats://127.0.0.1:1"), connect_timeout=1)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1 cannot be reached: .*Connect call failed"):
        await Broker(JetStreamStore(where)).start()


async def test_a_server_that_is_killed_is_waited_for(tmp_path: Path) -> None:
    """What is under way goes on when it is back; nothing is stored twice."""
    with NatsServers(tmp_path) as servers:
        async with Broker(JetStreamStore(JetStreamSettings.parse(servers.address)), SETTINGS) as broker:
            body = frames(3_000_000)
            await publish(broker, body, "before")
            servers.kill(0)
            waiting = [asyncio.create_task(publish(broker, body, f"{number}")) for number in range(3)]
            waiting.append(asyncio.create_task(publish(broker, frames(100), "small")))
            await asyncio.sleep(1)
            assert not any(task.done() for task in waiting)
            servers.start(0)
            stored = await asyncio.gather(*waiting)
            assert sorted(receipt.seq for receipt in stored) == [2, 3, 4, 5]
            assert [await read(broker, receipt.id) for receipt in stored[:3]] == [body] * 3
            assert (await broker.topics())[0].messages == 5


async def test_a_replica_that_lags_is_no_damage(where: JetStreamSettings) -> None:
    """It gives an older piece of the same size: its leader's is read instead, and nothing is put aside."""
    body = frames(1_300_000)
    async with (
        Broker(JetStreamStore(where), SETTINGS) as broker,
        Broker(JetStreamStore(where, stand_by=True), SETTINGS) as other,
    ):
        receipt = await publish(broker, body, "k")
        async with LaggingReplica(
            where.servers[0], f"{where.name}_frames", lambda stored: stored[:-9] + b"older...."
        ) as replica:
            for each in (broker, other):
                assert await read(each, receipt.id) == body
                assert await read(each, receipt.id) == body
            assert replica.given > 0
            broker.scrub()
            report = await broker.scrub_end()
            assert (report.messages, report.damaged) == (1, ())
        assert not (await broker.damaged()).damaged
        assert broker.measures.damaged == 0


async def test_older_frames_that_are_whole_are_not_taken_for_the_messages(where: JetStreamSettings) -> None:
    """A replica that lags may have frames that were cut off and sent anew: the reader has to ask again."""
    body = frames(1_300_000)
    older = frames(1_300_000)
    size = 512 << 10
    pieces = {body[at : at + size]: older[at : at + size] for at in range(0, len(body), size)}
    async with Broker(JetStreamStore(where), SETTINGS) as broker:
        receipt = await publish(broker, body, "k")
        async with LaggingReplica(where.servers[0], f"{where.name}_frames", pieces.__getitem__) as replica:
            with pytest.raises(StoreUnavailable, match="lags behind"):
                await read(broker, receipt.id)
            assert replica.given == len(pieces)
        assert await read(broker, receipt.id) == body
        assert not (await broker.damaged()).damaged
