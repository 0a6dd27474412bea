"""Layout: what a model consists of, and whether an update consists of the same.

Two containers agree when they have the same names, each with the same kind, dtype and shape, and the same
sharing of storage. Their order may differ, and so may which of several names of one tied tensor is the one
that is sent: a state_dict sends the embedding and names the output head, a file made by safetensors'
``save_model`` does it the other way round. Scalars and byte strings agree whatever their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import LimitExceeded, ManifestMismatch

MAX_EXTRAS = 16 << 20
"""Bytes of all scalars and byte strings of an update together: they are kept beside the accumulator."""

_Storage = tuple[str, int, tuple[int, ...]]
"""Of an item: the first name of the storage that it lies in, its offset there, its strides."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The items of a model, in its order."""

    specs: tuple[ItemSpec, ...]

    @classmethod
    def of(cls, manifest: Sequence[ItemSpec]) -> Layout:
        """The layout of a message, whatever it was encoded with."""
        plain = (ItemSpec(spec.name, spec.dtype, spec.shape, spec.kind, view=spec.view) for spec in manifest)
        return cls(tuple(plain))

    def match(self, manifest: Sequence[ItemSpec]) -> dict[str, str]:
        """For each tensor that an update sends, the tensor of the model that it is added to.

        Raises:
            ManifestMismatch: the update is not of this layout; the first differences are named.
            LimitExceeded: its scalars and byte strings are too large.
        """
        model = {spec.name: spec for spec in self.specs}
        update = {spec.name: spec for spec in manifest}
        _same_names(model, update)
        for name, spec in model.items():
            _same_values(spec, update[name])
        extras = sum(spec.nbytes for spec in manifest if spec.kind != "tensor")
        if extras > MAX_EXTRAS:
            raise LimitExceeded(f"scalars and byte strings of {extras} bytes; at most {MAX_EXTRAS} are kept")
        ours, theirs = _storages(self.specs), _storages(manifest)
        for name in ours:
            if ours[name] != theirs[name]:
                raise ManifestMismatch(
                    f"{name!r} {_sharing(ours[name])} in the model, but {_sharing(theirs[name])} in the"
                    " update; a tied tensor has to stay tied"
                )
        sent = {ours[name]: name for name in ours if model[name].view is None}
        return {name: sent[theirs[name]] for name in theirs if update[name].view is None}


def _same_names(model: Mapping[str, ItemSpec], update: Mapping[str, ItemSpec]) -> None:
    for relation, names in (
        ("lacks", [name for name in model if name not in update]),
        ("has, unlike the model,", [name for name in update if name not in model]),
    ):
        if names:
            shown = ", ".join(f"{name!r:.100}" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ManifestMismatch(f"the update {relation} {shown}{more}")


def _same_values(model: ItemSpec, update: ItemSpec) -> None:
    ours, theirs = _type(model), _type(update)
    if ours != theirs:
        raise ManifestMismatch(f"{model.name!r} is {ours} in the model but {theirs} in the update")


def _type(spec: ItemSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}" if spec.kind == "tensor" else spec.kind


def _storages(specs: Sequence[ItemSpec]) -> dict[str, _Storage]:
    """Where each tensor lies, told the same way whichever name of a storage is the one that is sent."""
    tensors = {spec.name: spec for spec in specs if spec.kind == "tensor"}
    first = {name: name for name, spec in tensors.items() if spec.view is None}
    for spec in tensors.values():
        if spec.view is not None and _is_twin(spec, tensors[spec.view.of]):
            first[spec.view.of] = min(first[spec.view.of], spec.name)
    found: dict[str, _Storage] = {}
    for spec in tensors.values():
        if spec.view is None:
            found[spec.name] = (first[spec.name], 0, _strides(spec.shape, _contiguous(spec.shape)))
        else:
            found[spec.name] = (
                first[spec.view.of],
                spec.view.offset,
                _strides(spec.shape, spec.view.strides),
            )
    return found


def _is_twin(spec: ItemSpec, owner: ItemSpec) -> bool:
    """Whether a view is all of its owner, so that either could be the one that is sent."""
    return (
        spec.view is not None
        and spec.view.offset == 0
        and spec.shape == owner.shape
        and _strides(spec.shape, spec.view.strides) == _strides(spec.shape, _contiguous(spec.shape))
    )


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
