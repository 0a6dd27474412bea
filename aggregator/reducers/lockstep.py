"""Lockstep: many updates, and the models that they are changes from, side by side.

Strategy. Each container is read by its own `Reader`, which holds one slice, encoded. Slices of one tensor may
be cut differently in each, so what all of them have at hand is as far as the shortest: that is worked on, in
pieces that stay in the processor's cache, and then those that are used up get their next slice, all at once.
So memory is a frame for each update and a constant, whatever the size of the model or of its tensors. A model
is read only where a tensor needs it; see `RowMaker` for what it is needed for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.updates import Contribution, Update, UpdateRefused
from tensorbus.codecs.chain import codec_of
from tensorbus.codecs.item import ItemSpec

from .base import FindBase
from .decoded import Decoded
from .reader import Reader, is_in_order
from .rows import BAD, Member, RowMaker, Rows, Source, is_plain
from .stream import SliceThread

_CURRENT = ""
"""Key of the round's model among the bases."""


class Lockstep:
    """Reads the members once.

    Args:
        members: in the order of the rows.
        current: the round's model.
        find_base: gives the models that late updates were trained from.
        thread: in which all that blocks is done.
        changes: whether the rows are changes, and not values.
        names: tensors to be read, as the model calls them; None for all. Those that no member has come with
            no rows, and ``current``.
    """

    def __init__(
        self,
        layout: Layout,
        members: Sequence[Member],
        current: Update,
        find_base: FindBase,
        thread: SliceThread,
        *,
        changes: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        self._layout = layout
        self._members = members
        self._current = current
        self._find_base = find_base
        self._thread = thread
        self._changes = changes
        sent = [spec for spec in layout.specs if spec.kind == "tensor" and spec.view is None and spec.count]
        asked = None if names is None else set(names)
        self._specs = {spec.name: spec for spec in sent if asked is None or spec.name in asked}
        self._sources = [{mine: theirs for theirs, mine in one.targets.items()} for one in members]
        self._manifests = [{spec.name: spec for spec in one.update.manifest} for one in members]
        self._rows = RowMaker(len(members), changes)

    async def run(self, take: Callable[[Rows], None]) -> None:
        """Give all rows to ``take``, in the thread, the pieces of each tensor in ascending order.

        Raises:
            UpdateRefused: a member cannot be read, or its values leave the range of their dtype.
            NonFiniteValues: the round's model holds NaN or Inf.
            FoldingInterrupted, BrokerUnavailable, TransferStalled: something cannot be had.
        """
        order = self._order()
        async with _readers() as made:
            readers = [
                Reader(one.update, sources, order, Decoded.hold_update)
                for one, sources in zip(self._members, self._sources, strict=True)
            ]
            made.extend(readers)
            models = await self._models(order, made)
            for name in order:
                await self._tensor(name, readers, models, take)

    # --- which tensors, in which order, against which models -------------------------------------------

    def _order(self) -> list[str]:
        """The order of tensors in which most members can be read as one stream."""
        ours = list(self._specs)
        found = [ours]
        for one, sources in zip(self._members, self._sources, strict=True):
            if len(sources) >= len(ours):
                theirs = [one.targets[spec.name] for spec in one.update.manifest if spec.name in one.targets]
                order = [name for name in theirs if name in self._specs]
                if len(order) == len(ours) and order not in found:
                    found.append(order)
        return max(found, key=self._streams)  # of equals, the first: the model's own

    def _streams(self, order: Sequence[str]) -> int:
        return sum(
            is_in_order([sources[name] for name in order if name in sources], one.update)
            for one, sources in zip(self._members, self._sources, strict=True)
        )

    def _needs(self, name: str) -> set[str]:
        """Keys of the models that the rows of a tensor may need."""
        needed: set[str] = set()
        having = [at for at, sources in enumerate(self._sources) if name in sources]
        if not having:
            return {_CURRENT}
        for at in having:
            one = self._members[at]
            plain = is_plain(one.contribution)
            codec = codec_of(self._manifests[at][self._sources[at][name]])
            if not self._changes and (not plain or codec.base is not None):
                needed.add(_CURRENT)
            # A codec with a base may send a slice whole; whether it ever does, it says of any payload.
            if (codec.base is None or not codec.needs_base(memoryview(b"\0"))) and (
                self._changes or not plain
            ):
                needed.add(_base_key(one.contribution))
        return needed

    async def _models(self, order: Sequence[str], made: list[Reader]) -> dict[str, dict[str, Reader]]:
        """For each tensor, the readers of the models that it needs, by their keys."""
        needs = {name: self._needs(name) for name in order}
        readers: dict[str, Reader] = {}
        for key in sorted({key for keys in needs.values() for key in keys}):
            model = self._current if key == _CURRENT else await self._find_base(key)
            sources = {mine: theirs for theirs, mine in self._layout.match(model.manifest).items()}
            wanted = [name for name in order if key in needs[name]]
            readers[key] = Reader(model, sources, wanted, Decoded.hold_model)
            made.append(readers[key])
        return {name: {key: readers[key] for key in keys} for name, keys in needs.items()}

    # --- one tensor ----------------------------------------------------------------------------------

    async def _tensor(
        self,
        name: str,
        readers: Sequence[Reader],
        models: Mapping[str, Mapping[str, Reader]],
        take: Callable[[Rows], None],
    ) -> None:
        spec, bases = self._specs[name], models[name]
        sources = [
            Source(place, one, readers[place], bases.get(_base_key(one.contribution)))
            for place, one in enumerate(self._members)
            if name in self._sources[place]
        ]
        everyone = [*(source.reader for source in sources), *bases.values()]
        blame = {source.reader: source.member.contribution.message for source in sources}
        for reader in everyone:
            await reader.begin(name)
        at = 0
        while at < spec.count:
            due = [reader for reader in everyone if reader.slice.stop <= at]
            await _fetch(due, blame)
            end = min(spec.count, *(reader.slice.stop for reader in everyone))
            step = partial(self._step, spec, at, end, sources, bases.get(_CURRENT), take)
            await self._thread.call(step)
            at = end

    def _step(
        self,
        spec: ItemSpec,
        at: int,
        end: int,
        sources: Sequence[Source],
        current: Reader | None,
        take: Callable[[Rows], None],
    ) -> None:
        """Hand out what all have at hand."""
        width = self._rows.width(len(sources))
        for start in range(at, end, width):
            take(self._rows.make(spec, start, min(start + width, end), sources, current))


def _base_key(contribution: Contribution) -> str:
    return _CURRENT if contribution.current else contribution.base


def _blamed(error: Exception, reader: Reader, blame: Mapping[Reader, str]) -> Exception:
    """The error, as one of the update that it came from if it did."""
    if reader not in blame or not isinstance(error, BAD):
        return error
    return UpdateRefused(blame[reader], str(error))


async def _fetch(due: Sequence[Reader], blame: Mapping[Reader, str]) -> None:
    """The next slice of each, all at once. When this returns or raises, none is being fetched any more."""
    errors: dict[Reader, Exception] = {}

    async def fetch(reader: Reader) -> None:
        try:
            await reader.fetch()
        except Exception as error:
            errors[reader] = error

    if len(due) == 1:
        await fetch(due[0])
    else:
        async with asyncio.TaskGroup() as group:
            for reader in due:
                group.create_task(fetch(reader))
    # What cannot be had now comes before who is to blame: all of it is read again then.
    for reader, error in sorted(errors.items(), key=lambda each: isinstance(each[1], BAD)):
        raise _blamed(error, reader, blame) from error


@asynccontextmanager
async def _readers() -> AsyncGenerator[list[Reader]]:
    """A list of readers, which are closed in the end."""
    made: list[Reader] = []
    try:
        yield made
    finally:
        for reader in made:
            await reader.aclose()
