"""Tensorbus codecs inside Flower: what moves between ServerApp and ClientApps is encoded, that is all.

    app = ClientApp(mods=[tensorbus_mod])                                       # at the clients

    strategy = TensorbusStrategy(FedAvg(), up="delta | nf4", down="bf16")       # in the ServerApp
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

Strategy. Each ArrayRecord becomes one of the same names, whose Arrays hold the frames of a Tensorbus message
in place of values. Both ends decode before anybody looks: the wrapped strategy and the ClientApp see what
they always saw. The server says in each message how the reply is to be encoded, so the clients name no codec.
In a change (``delta``) the base is the model that the client was sent, as both ends decode it.
"""

# flwr is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidSpecification, TensorbusError

from .packages import missing

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ModuleNotFoundError as error:
    raise missing("flower", error) from error

from .flower_records import Coded, decode, encode, is_encoded, is_plain
from .frames import pipeline_of

__all__ = ["TensorbusStrategy", "tensorbus_mod"]

log = logging.getLogger("tensorbus.flower")

ORDER = "tensorbus"
"""Name of the ConfigRecord in which the server says how replies are to be encoded."""

Codec = str | Mapping[str, object] | Pipeline | None


def tensorbus_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """The client's side: decodes what a `TensorbusStrategy` sends, and encodes the reply as that demands.

    Put it first among the mods, so that the others see plain arrays. A server that knows nothing of Tensorbus
    is served as without it.

    Raises:
        TensorbusError: what came is damaged, or what is to be sent cannot be encoded; Flower makes an error
            reply of it.
    """
    order = message.content.config_records.get(ORDER)
    if order is None:
        return call_next(message, context)
    up = _ordered(order)
    content, received = RecordDict(), dict[str, Coded]()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord) and is_encoded(record):
            received[name] = decode(record)
            content[name] = received[name].record
        elif name != ORDER:
            content[name] = record
    message.content = content
    reply = call_next(message, context)
    if not reply.has_error():
        reply.content = _encoded(reply.content, lambda name, record: _reply(name, record, up, received))
    return reply


class TensorbusStrategy(Strategy):
    """The server's side, around any strategy of Flower, which aggregates decoded arrays in full precision.

    A reply that cannot be decoded is left out, and logged with its node.

    Args:
        strategy: that decides everything else; its attributes are to be had here too.
        up: codec of the replies; ``delta`` sends the change from the model that was sent.
        down: codec of the models.
        keep: patterns of names that are sent exactly, both ways.

    Raises:
        InvalidSpecification, UnknownCodec: a codec is malformed, or needs what there is not: a base for
            the models, or ``feedback``.
    """

    def __init__(
        self, strategy: Strategy, up: Codec = None, down: Codec = None, keep: Iterable[str] = ()
    ) -> None:
        keep = tuple(keep)
        self._strategy = strategy
        self._down = pipeline_of(down, keep, based=False, where="down")
        self._up = pipeline_of(up, keep, based=True, where="up")
        self._sent: dict[int, tuple[ArrayRecord, Coded]] = {}

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._strategy, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As of the strategy, encoded."""
        return self._outgoing(self._strategy.configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As of the strategy, encoded."""
        return self._outgoing(self._strategy.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As of the strategy, of decoded replies."""
        return self._strategy.aggregate_train(server_round, self._incoming(replies))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As of the strategy, of decoded replies."""
        return self._strategy.aggregate_evaluate(server_round, self._incoming(replies))

    def summary(self) -> None:
        """Of the strategy."""
        log.info("Tensorbus: models as %s, replies as %s", self._down.to_json(), self._up.to_json())
        self._strategy.summary()

    def _outgoing(self, messages: Iterable[Message]) -> list[Message]:
        self._sent.clear()
        order = ConfigRecord({"up": json.dumps(self._up.to_json())})
        made: dict[int, tuple[RecordDict, RecordDict]] = {}
        outgoing: list[Message] = []
        for message in messages:
            given = message.content
            if id(given) not in made:  # most strategies send the same to everybody
                content = _encoded(given, lambda _, record: self._model(record))
                content[ORDER] = order
                made[id(given)] = (given, content)
            message.content = made[id(given)][1]
            outgoing.append(message)
        return outgoing

    def _model(self, record: ArrayRecord) -> ArrayRecord:
        if id(record) not in self._sent:
            self._sent[id(record)] = (record, encode(record, self._down))
        return self._sent[id(record)][1].record

    def _incoming(self, replies: Iterable[Message]) -> list[Message]:
        bases = {coded.id: coded for _, coded in self._sent.values()} if _is_based(self._up) else {}
        context = CodecContext(bases={name: coded.base for name, coded in bases.items()})
        incoming: list[Message] = []
        for reply in replies:
            if not reply.has_error():
                try:
                    reply.content = _decoded(reply.content, context)
                except TensorbusError as error:
                    log.error("the reply of node %d is left out: %s", reply.metadata.src_node_id, error)
                    continue
            incoming.append(reply)
        return incoming


def _encoded(content: RecordDict, encoded: Callable[[str, ArrayRecord], ArrayRecord]) -> RecordDict:
    """The same content with its plain ArrayRecords encoded."""
    return RecordDict(
        {
            name: encoded(name, record) if isinstance(record, ArrayRecord) and is_plain(record) else record
            for name, record in content.items()
        }
    )


def _decoded(content: RecordDict, context: CodecContext) -> RecordDict:
    return RecordDict(
        {
            name: (
                decode(record, context).record
                if isinstance(record, ArrayRecord) and is_encoded(record)
                else record
            )
            for name, record in content.items()
        }
    )


def _reply(name: str, record: ArrayRecord, up: Pipeline, received: Mapping[str, Coded]) -> ArrayRecord:
    """A record of a reply. Its base is the record of its name, or the only one, in what came."""
    if not _is_based(up):
        return encode(record, up).record
    base = received.get(name) or (next(iter(received.values())) if len(received) == 1 else None)
    return encode(record, up, CodecContext(base=base and base.base)).record


def _is_based(pipeline: Pipeline) -> bool:
    return any(stage.against_base for stage in pipeline.stages)


def _ordered(order: ConfigRecord) -> Pipeline:
    try:
        return pipeline_of(
            cast("Mapping[str, object]", json.loads(str(order["up"]))),
            based=True,
            where="what the server asks",
        )
    except (KeyError, ValueError) as error:
        if isinstance(error, TensorbusError):
            raise
        raise InvalidSpecification(f"the server says not how replies are to be encoded: {error}") from error
