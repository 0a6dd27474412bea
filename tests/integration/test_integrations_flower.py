"""Promises of the codecs inside Flower: any strategy runs as before, in as few bytes as the codec says.

Flower's own simulation engine runs here, with its in-memory grid, state and threads; only its one back end,
which needs Ray, is replaced by one that calls the ClientApp, on messages that have been through protobuf.
"""

# flwr is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.task_pb2 import Task  # pyright: ignore[reportAttributeAccessIssue]
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    Result,
    Strategy,
)
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    InvalidSpecification,
    MissingBase,
    NonFiniteValues,
    UnsupportedContainer,
)
from tensorbus.integrations.flower import ORDER, TensorbusStrategy, tensorbus_mod
from tensorbus.integrations.flower_records import STYPE, decode, encode

Arrays = dict[str, npt.NDArray[Any]]


def model(size: int = 300) -> Arrays:
    """Weights, a norm, a counter, a scalar and nothing."""
    random = np.random.default_rng(0)
    return {
        "weight": random.normal(size=(size, 256)).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "norm": np.ones(256, np.float32),
        "half": np.asfortranarray(random.normal(size=(64, 96)).astype(np.float16)),
        "steps": np.array(3, np.int64),
    }


def record_of(arrays: Arrays) -> ArrayRecord:
    """As Flower makes it."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def arrays_of(record: Any) -> Arrays:
    """As Flower reads it."""
    return {name: array.numpy() for name, array in record.items()}


def size_of(message: Message) -> int:
    """Bytes of its arrays."""
    return sum(
        len(array.data) for record in message.content.array_records.values() for array in record.values()
    )


@pytest.fixture(autouse=True)
def server() -> None:  # pyright: ignore[reportUnusedFunction]
    """Messages are made in the process of a ServerApp."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 1, SUPERLINK_NODE_ID


# --- Flower's engine ---------------------------------------------------------------------------------


@dataclass
class Wire:
    """What was moved."""

    down: list[int] = field(default_factory=list[int])
    up: list[int] = field(default_factory=list[int])
    replies: list[Message] = field(default_factory=list[Message])
    damage: Callable[[Message], None] = lambda message: None


def moved(message: Message) -> Message:
    """Through protobuf and back."""
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))


class InProcess(Backend):
    """Calls the ClientApp in the engine's worker thread."""

    def __init__(self, wire: Wire) -> None:
        super().__init__({})
        self._wire = wire
        self._app: ClientApp | None = None

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._app = app_fn()

    @property
    def num_workers(self) -> int:
        return 2

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        """There is nothing to end."""

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        assert self._app is not None
        self._wire.down.append(size_of(message))
        reply = self._app(moved(message), context)
        if reply.has_content():
            self._wire.up.append(size_of(reply))
            self._wire.damage(reply)
            self._wire.replies.append(reply)
        return moved(reply), context


def run(
    strategy: Strategy, app: ClientApp, start: Arrays, rounds: int = 2, wire: Wire | None = None
) -> Result:
    """A whole Flower run of two nodes."""
    state_factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    about = Run.create_empty(7)
    about.primary_task_id = 1
    about.federation_id = NOOP_FEDERATION_ID
    state = cast("Any", state_factory.state())
    state.run_ids[about.run_id] = RunRecord(run=about)
    state.task_store[1] = Task(task_id=1, run_id=about.run_id)
    nodes = vce_api._register_nodes(2, state_factory)  # pyright: ignore[reportPrivateUsage]
    stores = vce_api._register_node_info_stores(nodes, about)  # pyright: ignore[reportPrivateUsage]
    stop = threading.Event()
    backend = InProcess(wire or Wire())
    engine = threading.Thread(
        target=vce_api.run_api,
        args=(lambda: app, lambda: backend, nodes, state_factory, stores, stop, VceMetrics()),
    )
    engine.start()
    try:
        grid = InMemoryGrid(state_factory, pull_interval=0.02)
        grid.set_run(about)
        return strategy.start(grid, record_of(start), num_rounds=rounds, timeout=30)
    finally:
        stop.set()
        engine.join()


def app_with(*mods: Any) -> ClientApp:
    """Each node moves the model by a step of its own; it is an ordinary app."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        random = np.random.default_rng(10 + node)
        arrays = {
            name: (array + 0.01 * random.normal(size=array.shape)).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in arrays_of(message.content["arrays"]).items()
        }
        assert list(message.content.config_records) == ["config"]
        content = {
            "arrays": record_of(arrays),
            "metrics": MetricRecord({"num-examples": 1 + node, "loss": 0.5}),
        }
        return Message(RecordDict(cast("Any", content)), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        weight = arrays_of(message.content["arrays"])["weight"]
        metrics = MetricRecord({"num-examples": 1, "mean": float(np.abs(weight).mean())})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@pytest.mark.parametrize(
    ("up", "down", "ratio_up", "ratio_down", "error"),
    [
        ("none", "none", 1.0, 1.0, 1e-6),
        ("bf16", "bf16", 0.5, 0.5, 0.04),
        ("delta | nf4", "none", 0.141, 1.0, 0.012),
        ("delta | int8", "int8", 0.251, 0.251, 0.1),
    ],
)
def test_fedavg_runs_unchanged(up: str, down: str, ratio_up: float, ratio_down: float, error: float) -> None:
    """The same result as without, but for the codec's error; the wire is smaller by the codec's ratio."""
    start = {"weight": model(1024)["weight"], "norm": np.ones(256, np.float32)}
    plain = arrays_of(run(FedAvg(), app_with(), start).arrays)
    wire = Wire()
    strategy = TensorbusStrategy(FedAvg(), up=up, down=down, keep=["norm"])
    result = run(strategy, app_with(tensorbus_mod), start, wire=wire)
    got = arrays_of(result.arrays)
    for name, array in plain.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, atol=error, rtol=0)
    size = sum(array.nbytes for array in start.values())
    for sizes, ratio, number in ((wire.down, ratio_down, 8), (wire.up, ratio_up, 8)):
        full = [count for count in sizes if count]
        assert len(sizes) == number
        assert all(abs(count - ratio * size) < 0.002 * size + 2000 for count in full)
    assert wire.up.count(0) == 4  # replies to evaluations have no arrays
    assert result.evaluate_metrics_clientapp[2]["mean"] == pytest.approx(
        np.abs(got["weight"]).mean(), rel=0.01
    )
    assert result.train_metrics_clientapp[1]["loss"] == 0.5


def test_a_client_without_a_wrapped_strategy_is_served_as_before() -> None:
    """The mod stays in the app, whoever asks."""
    start = model(8)
    wire = Wire()
    got = arrays_of(run(FedAvg(fraction_evaluate=0.0), app_with(tensorbus_mod), start, 1, wire).arrays)
    plain = arrays_of(run(FedAvg(fraction_evaluate=0.0), app_with(), start, 1).arrays)
    assert [reply.content.array_records["arrays"]["norm"].stype for reply in wire.replies] == [
        "numpy.ndarray"
    ] * 2
    np.testing.assert_allclose(got["norm"], plain["norm"], rtol=1e-6)


def test_other_mods_and_strategies_see_plain_arrays() -> None:
    """Flower's own clipping mod behind ours, its wrapper inside ours; FedAdam is as any."""
    start = {"weight": model(16)["weight"]}
    inner = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 0.5, 2)
    got = run(TensorbusStrategy(inner, up="none"), app_with(tensorbus_mod, fixedclipping_mod), start, 1)
    change = arrays_of(got.arrays)["weight"] - start["weight"]
    assert 0.3 < np.linalg.norm(change) <= 0.5
    adam = TensorbusStrategy(FedAdam(eta=0.1), up="delta | uniform:0.05")
    assert adam.eta == 0.1
    got = run(adam, app_with(tensorbus_mod), start, 1)
    plain = run(FedAdam(eta=0.1), app_with(), start, 1)
    change, wanted = (arrays_of(one.arrays)["weight"] - start["weight"] for one in (got, plain))
    assert np.abs(change - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_broken_reply_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log that names its node; the others count."""
    start = {"weight": model(16)["weight"]}
    once = threading.Lock()

    def damage(reply: Message) -> None:
        if once.acquire(blocking=False):
            record = reply.content.array_records["arrays"]
            data = bytearray(record["weight"].data)
            data[len(data) // 2] ^= 1
            record["weight"] = Array("float32", (16, 256), STYPE, bytes(data))

    strategy = TensorbusStrategy(FedAvg(fraction_evaluate=0.0), up="delta | int8")
    result = run(strategy, app_with(tensorbus_mod), start, 1, Wire(damage=damage))
    change = arrays_of(result.arrays)["weight"] - start["weight"]
    assert np.abs(change).std() == pytest.approx(0.006, abs=0.0005)  # of one node, and not the mean of two
    assert "is left out" in caplog.text


# --- records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "nf4", "uniform", "lossless", "rotate | lloyd:2"])
def test_records_come_back_with_names_shapes_and_dtypes(codec: str) -> None:
    """Whatever is in them, after Flower has cut them into the objects that it really sends."""
    start = model()
    coded = encode(record_of(start), Pipeline.parse(codec))
    content = RecordDict({"arrays": coded.record})
    objects = get_all_nested_objects(content)
    inflated: dict[str, Any] = {}
    for identity, one in objects.items():  # children first
        inner = {child: inflated[child] for child in one.children or {}}
        inflated[identity] = type(one).inflate(one.deflate(), inner or None)
    got = arrays_of(decode(inflated[content.object_id]["arrays"]).record)
    assert list(got) == list(start)
    for name, array in start.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        if codec in ("none", "lossless") or array.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], array)
        else:
            np.testing.assert_allclose(got[name], array, atol=2.5)


def test_what_cannot_be_decoded_is_refused() -> None:
    """Damage, missing arrays, another order, another base, strangers."""
    coded = dict(encode(record_of(model()), Pipeline.parse("nf4")).record)
    weight = coded["weight"]
    broken = weight.data[:500] + bytes([weight.data[500] ^ 1]) + weight.data[501:]
    with pytest.raises((ChecksumMismatch, FrameError)):
        decode({**coded, "weight": Array(weight.dtype, weight.shape, STYPE, broken)})
    with pytest.raises(FrameError):
        decode({name: array for name, array in coded.items() if name != "steps"})
    with pytest.raises(FrameError):
        decode(dict(reversed(coded.items())))
    with pytest.raises(UnsupportedContainer, match="norm"):
        decode({**coded, "norm": Array(np.ones(256, np.float32))})
    base = encode(record_of(model()), Pipeline.parse("nf4"))
    context = CodecContext(base=base.base)
    change = encode(record_of(model()), Pipeline.parse("delta | nf4"), context)
    with pytest.raises(MissingBase, match=base.id):
        decode(change.record)
    again = arrays_of(decode(change.record, context).record)["weight"]
    assert np.abs(again - model()["weight"]).max() < 0.3


def test_what_cannot_be_encoded_is_refused() -> None:
    """NaN by name, objects that would have to be unpickled, pipelines that need what there is not."""
    with pytest.raises(NonFiniteValues, match="bad"):
        encode(record_of({"bad": np.full(999, np.nan, np.float32)}), Pipeline.parse("nf4"))
    with pytest.raises(UnsupportedContainer, match="'x'"):
        encode({"x": Array("float32", (3,), "numpy.ndarray", b"no numpy")}, Pipeline.parse("nf4"))
    for up, down in (("feedback | nf4", None), ("delta | feedback | nf4", None), (None, "delta | nf4")):
        with pytest.raises(InvalidSpecification, match="there is none"):
            TensorbusStrategy(FedAvg(), up=up, down=down)


def test_a_strange_order_of_the_server_is_refused() -> None:
    """Before the app runs."""
    for text in ("{", '{"quantizer": {"name": "none"}, "more": 1}'):
        content = RecordDict({ORDER: ConfigRecord({"up": text})})
        message = Message(content, dst_node_id=1, message_type="train")
        with pytest.raises(InvalidSpecification):
            tensorbus_mod(message, cast("Any", None), cast("Any", None))
