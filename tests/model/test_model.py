"""The broker against a reference in memory, step by step, on virtual time, with crashes in between.

Hypothesis makes up the steps. After each one the broker must say what the reference says: which messages
there are, what every consumer has in hand, which errors there were. A longer run: docs/testing.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import invariant, precondition, rule

from modelling.driven import INLINE, body_of
from modelling.reference import Message
from modelling.upload_rules import KEYS, TOPICS, UploadRules
from tensorbus.bus.broker import Broker
from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.consumers import ConsumerConfig, DeliveryInfo
from tensorbus.bus.policies import PolicyConfig
from tensorbus.errors import TensorbusError

EXAMPLES = int(os.environ.get("TENSORBUS_MODEL_EXAMPLES", "50"))
STEPS = 60
SHRINK_SECONDS = 60 if EXAMPLES <= 50 else 300
"""For which Hypothesis may look for a smaller example of what fails; it has no setting for that."""

SIZES = st.sampled_from([0, 100, 3000])
NAMES = st.sampled_from(["one", "two", "three"])
CONFIGS = st.builds(
    ConsumerConfig,
    filter=st.sampled_from(["a.>", "*.x", ">", "a.x", "dead.>"]),
    start=st.sampled_from(["all", "new", 3]),
    ack_wait=st.sampled_from([5.0, 20.0]),
    max_ack_pending=st.sampled_from([2, 64]),
    backoff=st.sampled_from([(), (), (1.0, 7.0)]),
    max_deliver=st.sampled_from([None, 2, 3]),
    dead_letter=st.sampled_from([None, None, "dead.all"]),
    inactive_threshold=st.sampled_from([None, None, 30.0]),
)
POLICIES = st.builds(
    PolicyConfig,
    filter=st.sampled_from(["a.x", "a.*", "b.x"]),
    retention=st.sampled_from(["limits", "limits", "interest", "workqueue"]),
    max_messages=st.sampled_from([None, 2, 3]),
    max_bytes=st.sampled_from([None, None, 4000, 12_000]),
    max_age=st.sampled_from([None, 30.0]),
)


@pytest.fixture(scope="module", autouse=True)
def shrink_briefly() -> Generator[None]:
    """What fails in CI is told soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "MAX_SHRINKING_SECONDS", SHRINK_SECONDS)
        yield


Settle = Callable[[Broker, str, str], Coroutine[Any, Any, None]]
"""An operation of a broker on a consumer's token."""


class BrokerModel(UploadRules):
    """Steps of a broker's life; each is done to the broker and to the reference."""

    # --- messages -------------------------------------------------------------------------------------

    @rule(
        topic=TOPICS,
        key=KEYS,
        size=SIZES,
        batch=st.booleans(),
        crash=st.sampled_from([False, False, False, True]),
    )
    def publish(self, topic: str, key: str | None, size: int, batch: bool, crash: bool) -> None:
        """A message; and perhaps the broker crashes as soon as it has been acknowledged."""
        content = self.content(size)
        length = len(body_of(content))
        publish = self.real.publish_batched if batch and length <= INLINE else self.real.publish
        receipt, first = self.compared(
            lambda: publish(topic, key, content), lambda: self.wanted.check_publish(topic, key, length)
        )
        if receipt is None:
            self.meet()
            return
        if crash:
            self.real.crash()
        if first is not None:
            assert (receipt.duplicate, receipt.id, receipt.seq) == (True, first.id, first.seq)
        else:
            assert not receipt.duplicate and receipt.seq > self.last_seq
            self.last_seq = receipt.seq
            self.wanted.published(Message(receipt.id, receipt.seq, topic, key, content, self.wanted.now))
        if crash:
            self.restarted()
        self.meet()

    @rule(topic=TOPICS, key=KEYS, size=SIZES, crash=st.booleans())
    def publish_half(self, topic: str, key: str | None, size: int, crash: bool) -> None:
        """A publisher that stops in the midst, or with the broker: nothing of it is left."""
        content = self.content(size)
        length = len(body_of(content))
        started, first = self.compared(
            lambda: self.real.begin(topic, key, content),
            lambda: self.wanted.check_publish(topic, key, length),
        )
        if isinstance(started, Upload):
            assert first is None
            if crash:
                self.real.crash()
                self.restarted()
            else:
                self.real.run(started.abort("it stopped"))
                assert started.aborted
        self.meet()

    @rule(data=st.data())
    @precondition(lambda self: bool(self.wanted.messages))
    def delete(self, data: st.DataObject) -> None:
        """Any message, a dead letter too."""
        name = data.draw(
            st.sampled_from(sorted(self.wanted.messages, key=lambda m: self.wanted.messages[m].seq))
        )
        self.both(lambda: self.real.run(self.real.broker.delete(name)), lambda: self.wanted.delete(name))

    @rule(topic=TOPICS, key=KEYS)
    def ask_for_receipt(self, topic: str, key: str | None) -> None:
        """What became of a key."""
        if key is None:
            return
        known = self.wanted.keys.get((topic, key))
        try:
            receipt = self.real.run(self.real.broker.receipt(topic, key))
        except TensorbusError:
            assert known is None
        else:
            assert known is not None and (receipt.id, receipt.seq) == (known.id, known.seq)

    # --- consumers ------------------------------------------------------------------------------------

    @rule(name=NAMES, config=CONFIGS)
    def ensure_consumer(self, name: str, config: ConsumerConfig) -> None:
        """Made, found, or refused."""
        config = replace(config, backoff=config.backoff[: config.max_deliver])
        self.both(
            lambda: self.real.run(self.real.broker.ensure_consumer(name, config)),
            lambda: self.wanted.ensure(name, config, self.last_seq),
        )

    @rule(name=NAMES)
    def delete_consumer(self, name: str) -> None:
        """It and its deliveries are forgotten."""
        self.both(
            lambda: self.real.run(self.real.broker.delete_consumer(name)), lambda: self.wanted.forget(name)
        )
        self.tokens = [token for token in self.tokens if token[0] != name]

    @rule(
        name=NAMES,
        limit=st.sampled_from([1, 2, 10]),
        follow=st.booleans(),
        inline=st.sampled_from([0, 1000]),
    )
    def pull(self, name: str, limit: int, follow: bool, inline: int) -> None:
        """What is handed over, in its order; perhaps with frames, or with what is being published."""
        given, wanted = self.both(
            lambda: self.real.run(self.real.broker.pull(name, limit, follow=follow, inline=inline)),
            lambda: self.wanted.pull(name, limit, follow),
        )
        if given is None:
            return
        deliveries: list[DeliveryInfo] = given
        assert [(one.message.id, one.attempt) for one in deliveries] == wanted
        for one in deliveries:
            if one.frames is not None:
                self.check_frames(one)
            self.tokens.append((name, one.token, int(one.token[40:], 16)))

    def check_frames(self, delivery: DeliveryInfo) -> None:
        """Frames that came along are those of the message."""
        message = self.wanted.messages.get(delivery.message.id)
        if message is not None:
            assert delivery.frames == body_of(message.content)

    def settle(self, data: st.DataObject, real: Settle, wanted: Callable[[str, str, int], object]) -> None:
        """Do something with a token that was handed out at some time."""
        name, token, attempt = data.draw(st.sampled_from(self.tokens[-12:]))
        self.both(
            lambda: self.real.run(real(self.real.broker, name, token)),
            lambda: wanted(name, token[8:40], attempt),
        )

    @rule(data=st.data())
    @precondition(lambda self: bool(self.tokens))
    def ack(self, data: st.DataObject) -> None:
        """Settled for good."""
        self.settle(data, lambda broker, name, token: broker.ack(name, token), self.wanted.ack)

    @rule(data=st.data(), delay=st.sampled_from([0.0, 4.0]), unread=st.sampled_from([False, False, True]))
    @precondition(lambda self: bool(self.tokens))
    def nak(self, data: st.DataObject, delay: float, unread: bool) -> None:
        """Given back."""
        self.settle(
            data,
            lambda broker, name, token: broker.nak(name, token, delay, unread),
            lambda name, message, attempt: self.wanted.nak(name, message, attempt, delay, unread),
        )

    @rule(data=st.data())
    @precondition(lambda self: bool(self.tokens))
    def term(self, data: st.DataObject) -> None:
        """Refused: a dead letter."""
        self.settle(data, lambda broker, name, token: broker.term(name, token, "no"), self.wanted.term)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.tokens))
    def in_progress(self, data: st.DataObject) -> None:
        """More time."""
        self.settle(
            data, lambda broker, name, token: broker.in_progress(name, token), self.wanted.in_progress
        )

    @rule(data=st.data(), everyone=st.booleans())
    @precondition(lambda self: bool(self.wanted.messages))
    def replay(self, data: st.DataObject, everyone: bool) -> None:
        """A dead letter becomes a message again; anything else is refused."""
        letters = [message.id for message in self.wanted.messages.values() if message.died]
        name = data.draw(st.sampled_from(sorted(letters or self.wanted.messages, key=self.seq_of)))
        info, letter = self.compared(
            lambda: self.real.run(self.real.broker.replay(name, everyone)),
            lambda: self.wanted.replay_check(name, everyone),
        )
        if info is None:
            return
        died = letter.died
        assert (info.topic, info.key) == (died.topic, died.key) and info.seq > self.last_seq
        self.last_seq = info.seq
        again = Message(
            info.id,
            info.seq,
            info.topic,
            info.key,
            letter.content,
            self.wanted.now,
            letter.deaths[:-1],
            died.died,
        )
        self.wanted.replayed(letter, again, everyone)
        self.meet()

    # --- policies -------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(["p", "q"]), config=POLICIES, new=st.booleans())
    def put_policy(self, name: str, config: PolicyConfig, new: bool) -> None:
        """Made, changed, or refused."""
        if new and (config.max_messages, config.max_bytes) != (None, None):
            config = replace(config, discard="new")
        self.both(
            lambda: self.real.run(self.real.broker.put_policy(name, config)),
            lambda: self.wanted.put_policy(name, config),
        )

    @rule(name=st.sampled_from(["p", "q"]))
    def delete_policy(self, name: str) -> None:
        """From now on everything is kept."""
        self.both(
            lambda: self.real.run(self.real.broker.delete_policy(name)),
            lambda: self.wanted.delete_policy(name),
        )

    # --- time, and the end of it ----------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 6.0, 25.0, 120.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.real.clock.now += seconds
        self.wanted.now += seconds
        self.meet()

    @rule()
    def sweep(self) -> None:
        """What is due is done."""
        self.swept()

    @rule()
    def crash(self) -> None:
        """The broker is gone from one moment to the next, and comes back."""
        self.real.crash()
        self.restarted()

    @rule()
    def restart(self) -> None:
        """The broker is stopped and started."""
        self.real.restart()
        self.restarted()

    # --- what must hold -------------------------------------------------------------------------------

    @invariant()
    def same_messages(self) -> None:
        """The same messages in the same order, each as it was published."""
        listed = [
            (info.id, info.seq, info.topic, info.key, info.dead.consumer if info.dead else None)
            for info in self.real.all_messages()
        ]
        assert listed == [
            (m.id, m.seq, m.topic, m.key, m.deaths[-1] if m.died else None)
            for m in sorted(self.wanted.messages.values(), key=lambda message: message.seq)
        ]

    @invariant()
    def same_consumers(self) -> None:
        """The same consumers, with as many deliveries in hand."""
        there = {info.name: info.ack_pending for info in self.real.run(self.real.broker.consumers())}
        assert there == {name: len(consumer.handed) for name, consumer in self.wanted.consumers.items()}


TestBroker = BrokerModel.TestCase
TestBroker.settings = settings(
    max_examples=EXAMPLES,
    report_multiple_bugs=False,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],  # to explain an example takes minutes
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    print_blob=True,
)
