"""ModelTensors: which tensors of a torch model travel in a federation, and under which names.

Of a `peft.PeftModel` they are those of its active adapter, as PEFT writes them to a file; of any other model
its state_dict. Tied weights are one tensor with several names: a global model need not have them all, since
files that transformers writes have one of them only.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

from tensorbus.errors import ManifestMismatch

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


class ModelTensors:
    """Of one model while it is trained.

    Args:
        names: of the tensors of the job's models.
    """

    def __init__(self, model: torch.nn.Module, names: Collection[str]) -> None:
        self._model = model
        self._names = frozenset(names)
        self._adapter = _active_adapter(model)
        self._embeddings = self._adapter is not None and self._saves_embeddings()

    def target(self) -> Tensors:
        """The tensors to load a global model into: the model's own memory wherever that is possible.

        Raises:
            ManifestMismatch: the job's models are for another kind of model.
        """
        found = self._found()
        places = {_place(tensor) for name, tensor in found.items() if name in self._names}
        target = {
            name: tensor
            for name, tensor in found.items()
            if name in self._names or _place(tensor) not in places
        }
        self._check(target)
        return target

    def take(self, loaded: Tensors) -> None:
        """Have the model use ``loaded``, which was `target`, where it is not the model's own memory."""
        if self._adapter is None:
            return
        own = {tensor.data_ptr() for tensor in self._model.state_dict().values()}
        if any(tensor.data_ptr() not in own for tensor in loaded.values()):
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self._model, loaded, adapter_name=self._adapter)

    def update(self) -> Tensors:
        """What is submitted: tensors that stay as they were, since they are frozen, are left out."""
        target = self.target()
        if self._adapter is not None:
            return target
        parameters = self._model.named_parameters(remove_duplicate=False)
        frozen = {name for name, one in parameters if not one.requires_grad}
        return {name: tensor for name, tensor in target.items() if name not in frozen}

    def _found(self) -> Tensors:
        if self._adapter is None:
            return dict(self._model.state_dict())
        return self._of_adapter(self._embeddings)

    def _of_adapter(self, embeddings: bool | str) -> Tensors:
        from peft import get_peft_model_state_dict

        assert self._adapter is not None
        model = cast("Any", self._model)
        given = cast("Any", embeddings)
        return get_peft_model_state_dict(model, adapter_name=self._adapter, save_embedding_layers=given)

    def _saves_embeddings(self) -> bool:
        """Whether PEFT would save the embeddings too: found once, for it may ask the model hub."""
        return set(self._of_adapter("auto")) != set(self._of_adapter(False))

    def _check(self, target: Tensors) -> None:
        lacking, strange = sorted(set(target) - self._names), sorted(self._names - set(target))
        if not lacking and not strange:
            return
        lines = [
            f"the {whose} has {len(names)} tensors that the {other} lacks, such as {names[0]!r}"
            for names, whose, other in (
                (strange, "job's model", "model in training"),
                (lacking, "model in training", "job's model"),
            )
            if names
        ]
        hint = (
            "; of a PeftModel only the adapter travels: start the job from a folder that "
            "save_pretrained() wrote"
            if self._adapter is not None
            else ""
        )
        raise ManifestMismatch(" and ".join(lines) + hint)


def _active_adapter(model: torch.nn.Module) -> str | None:
    """The name of the adapter that is trained; None if the model is no PeftModel."""
    peft = sys.modules.get("peft")  # who has such a model has imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return None
    return cast("str", model.active_adapter)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
