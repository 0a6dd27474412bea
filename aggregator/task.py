"""Task: one round's work for one site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tensorbus.bus.client import Receipt
from tensorbus.bus.client.progress import ProgressCallback
from tensorbus.streaming.sinks import open_file_sink, open_sink

from .arriving import Arriving
from .headers import UpdateHeaders
from .job import JobSpec
from .models import GlobalModel
from .state_folder import StateFolder
from .uplink import Uplink


@dataclass(frozen=True, slots=True)
class Task:
    """One round's work for one site: load the model, train it, submit it; or decline."""

    arriving: Arriving
    site: str
    down: ProgressCallback | None
    up: ProgressCallback | None
    state: StateFolder

    @property
    def model(self) -> GlobalModel:
        """The round's. It may still be on its way to the broker before it is loaded."""
        return self.arriving.model

    @property
    def round(self) -> int:
        """From 1."""
        return self.model.round

    @property
    def spec(self) -> JobSpec:
        """The job as its aggregator runs it."""
        return self.model.spec

    @property
    def headers(self) -> Mapping[str, object]:
        """Of the model's message."""
        return self.model.info.headers

    async def load(self, into: object | None = None) -> object:
        """The global model in its container kind, or decoded in place into the tensors of ``into``.

        Raises:
            RoundClosed: the round is so long over that its model was deleted.
            JobCancelled: the job was cancelled while the model was still on its way.
            ManifestMismatch: ``into`` lacks a tensor, or has it with another shape or dtype.
            MissingBase: the model is sent as a change from a base that this site was not given.
        """
        return await self._uplink().decode(lambda envelope: open_sink(envelope, into), self.down)

    async def save(self, path: str | Path) -> None:
        """The global model as a safetensors file; it is never in memory. Raises as `load`."""
        await self._uplink().decode(lambda envelope: open_file_sink(envelope, path), self.down)

    async def submit(
        self, container: object, num_examples: float, metrics: Mapping[str, float] | None = None
    ) -> Receipt | None:
        """Send this site's update; its receipt, once the broker has it on stable storage.

        It counts once however often it is submitted: a second one gets the first one's receipt, marked
        ``duplicate``, unless the aggregator has refused the first. None means that the round was over already
        for longer than the job lets updates be late, and nothing was sent; go on with the next.

        Args:
            container: what the model was, names, shapes and dtypes as loaded; or only those of its tensors
                that were trained: the others stay as they are, unless other sites send them.
            num_examples: how many examples the site trained on, the weight of its update; positive.
            metrics: numbers to be shown with the round, such as ``{"loss": 1.7}``.

        Raises:
            InvalidRequest: ``num_examples`` or a metric is not such a number.
            NonFiniteValues: the container holds NaN or Inf; the tensor is named.
            StorageError: the state folder cannot be used.
        """
        told = {name: _finite(_plain(value)) for name, value in (metrics or {}).items()}
        headers = UpdateHeaders(self.site, self.round, _plain(num_examples), told)
        return await self._uplink().send(container, headers, self.up)

    async def decline(self, reason: str = "") -> None:
        """Sit this round out: it need not wait for this site, which gets the next model as usual.

        Args:
            reason: told to whoever watches the aggregator, up to 500 characters.
        """
        await self._uplink().decline(leaves=False, reason=reason)

    def _uplink(self) -> Uplink:
        return Uplink(self.arriving, self.site, self.state)


def _plain(value: float) -> float:
    """A number of numpy or torch as Python's own."""
    item = getattr(value, "item", None)
    return cast(float, item()) if callable(item) else value


def _finite(value: float) -> float:
    """An Inf is as telling as a NaN, and only one of them is needed."""
    return math.nan if value in (math.inf, -math.inf) else value
