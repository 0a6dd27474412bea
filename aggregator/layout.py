"""Layout: what a model consists of, and whether an update consists of the same, or of a part of it.

An update agrees with the model when each of its names is one of the model's, with the same kind, dtype and
shape, and they share storage as they do there. It need not have all of them: adapters, or only the tensors
that changed, are updates as well, as long as there is a tensor. The order may differ, and so may which of
several names of one tied tensor is the one that is sent: a state_dict sends the embedding and names the
output head, a file made by safetensors' ``save_model`` does it the other way round. Scalars and byte strings
agree whatever their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import LimitExceeded, ManifestMismatch

MAX_EXTRAS = 16 << 20
"""Bytes of all scalars and byte strings of an update together: they are kept beside the accumulator."""

FRAMES, LEAST_SLICE = 4096, 4096
"""Frames that any update may have, and bytes of the model for each further one. Clients fill 1 MiB."""

_Storage = tuple[str, int, tuple[int, ...]]
"""Of an item: the tensor that is sent and in which it lies, its offset there, its strides."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The items of a model, in its order."""

    specs: tuple[ItemSpec, ...]

    @classmethod
    def of(cls, manifest: Sequence[ItemSpec]) -> Layout:
        """The layout of a message, whatever it was encoded with."""
        plain = (ItemSpec(spec.name, spec.dtype, spec.shape, spec.kind, view=spec.view) for spec in manifest)
        return cls(tuple(plain))

    @property
    def most_frames(self) -> int:
        """Frames that an update may come in: each costs the same, however little there is in it."""
        nbytes = sum(spec.nbytes for spec in self.specs if spec.view is None)
        return FRAMES + 4 * len(self.specs) + nbytes // LEAST_SLICE

    def match(self, manifest: Sequence[ItemSpec]) -> dict[str, str]:
        """For each tensor that an update sends, the tensor of the model that it is added to.

        Raises:
            ManifestMismatch: the update is not of this layout; the first differences are named.
            LimitExceeded: its scalars and byte strings are too large.
        """
        model = {spec.name: spec for spec in self.specs}
        update = {spec.name: spec for spec in manifest}
        _check_names(model, update)
        for name, spec in update.items():
            _same_values(model[name], spec)
        extras = sum(spec.nbytes for spec in manifest if spec.kind != "tensor")
        if extras > MAX_EXTRAS:
            raise LimitExceeded(f"scalars and byte strings of {extras} bytes; at most {MAX_EXTRAS} are kept")
        return _targets(self.specs, manifest)


def _check_names(model: Mapping[str, ItemSpec], update: Mapping[str, ItemSpec]) -> None:
    unknown = [name for name in update if name not in model]
    if unknown:
        shown = ", ".join(f"{name!r:.100}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ManifestMismatch(f"the update has, unlike the model, {shown}{more}")
    if not any(spec.kind == "tensor" for spec in update.values()):
        raise ManifestMismatch("the update has no tensor")


def _same_values(model: ItemSpec, update: ItemSpec) -> None:
    ours, theirs = _type(model), _type(update)
    if ours != theirs:
        raise ManifestMismatch(f"{model.name!r} is {ours} in the model but {theirs} in the update")


def _type(spec: ItemSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}" if spec.kind == "tensor" else spec.kind


def _targets(model: Sequence[ItemSpec], manifest: Sequence[ItemSpec]) -> dict[str, str]:
    """For each tensor that is sent, that of the model; raises where they share storage differently."""
    ours, theirs = _storages(model), _storages(manifest)
    counts = {spec.name: spec.count for spec in model}
    targets = {name: ours[name][0] for name in theirs if theirs[name][0] == name}
    for name, (owner, *place) in theirs.items():
        target, *expected = ours[name]
        if place != expected or target != targets[owner]:
            raise ManifestMismatch(
                f"{name!r} {_sharing(ours[name])} in the model, but {_sharing(theirs[name])} in the update"
            )
    senders: dict[str, str] = {}
    for name, target in targets.items():
        if counts[name] != counts[target]:
            raise ManifestMismatch(
                f"{name!r} is a part of {target!r} in the model; an update has to send that"
            )
        other = senders.setdefault(target, name)
        if other != name:
            raise ManifestMismatch(
                f"{name!r} and {other!r} are one in the model; a tied tensor has to stay tied in the update"
            )
    return targets


def _storages(specs: Sequence[ItemSpec]) -> dict[str, _Storage]:
    """Where each tensor lies."""
    found: dict[str, _Storage] = {}
    for spec in specs:
        if spec.kind != "tensor":
            continue
        if spec.view is None:
            found[spec.name] = spec.name, 0, _strides(spec.shape, _contiguous(spec.shape))
        else:
            strides = _strides(spec.shape, spec.view.strides)
            found[spec.name] = spec.view.of, spec.view.offset, strides
    return found


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides that compare: that of an extent of 1 says nothing."""
    return tuple(0 if extent == 1 else stride for extent, stride in zip(shape, strides, strict=True))


def _sharing(storage: _Storage) -> str:
    return f"lies in {storage[0]!r} at {storage[1]} with strides {list(storage[2])}"
