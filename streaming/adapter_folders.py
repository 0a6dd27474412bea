"""Folders of PEFT adapters, published and received without being loaded, and without PEFT.

Such a folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; other files in it (a model
card, a tokenizer) stay where they are. The configuration travels in the envelope's metadata, under its file's
name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import LimitExceeded, StorageError, UnsupportedContainer

from .files import SafetensorsSink, SafetensorsSource
from .part_file import FileReader, PartFile

CONFIG = "adapter_config.json"
"""File of the configuration, and the name of its text in a message's metadata."""

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

MAX_CONFIG = 48 << 10
"""Bytes of a configuration; with all else it has to fit the header of one frame."""


class AdapterSource:
    """The tensors of an adapter folder, under the names that PEFT gives them in its file.

    Raises:
        UnsupportedContainer: the folder holds no adapter, or one that only unpickling could read.
        LimitExceeded: its configuration is too long.
        StorageError, CodecError, …: a file cannot be read, or is not what its name says.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        path = Path(folder)
        self._config = _config_in(path)
        self._file = SafetensorsSource(path / WEIGHTS)

    @property
    def kind(self) -> str:
        """That of safetensors files: whoever knows nothing of adapters gets their tensors."""
        return self._file.kind

    @property
    def identity(self) -> str:
        """Another one when the file of the weights is replaced or written to."""
        return self._file.identity

    @property
    def metadata(self) -> Mapping[str, str]:
        """That of the file, and the configuration."""
        return {**self._file.metadata, CONFIG: self._config}

    def items(self) -> Sequence[Item]:
        """The tensors, values unread."""
        return self._file.items()

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


class AdapterSink(Sink):
    """Makes a folder that ``PeftModel.from_pretrained`` loads; it is made if need be.

    Its two files appear when all is there, each at once; other files in the folder are left alone.

    Args:
        metadata: of the message, with the configuration.

    Raises:
        UnsupportedContainer: the configuration is missing, or no JSON object.
        StorageError: the folder cannot be made; and as `SafetensorsSink`, from its methods.
    """

    def __init__(self, folder: str | PathLike[str], metadata: Mapping[str, str]) -> None:
        self._folder = Path(folder)
        self._config = _checked("the message", metadata.get(CONFIG, "")).encode()
        self._made = not self._folder.exists()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {str(folder)!r}: {error.strerror or error}"
            ) from error
        rest = {name: text for name, text in metadata.items() if name != CONFIG}
        # Without a format, transformers and PEFT refuse a file that has metadata.
        self._weights = SafetensorsSink(self._folder / WEIGHTS, {"format": "pt", **rest})

    def begin(self, spec: ItemSpec) -> None:
        self._weights.begin(spec)

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        return self._weights.buffer(spec, offset, count)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        self._weights.commit(spec, offset, count)

    def finish(self) -> object:
        """The path of the folder; what is in it is on stable storage."""
        config = PartFile(self._folder / CONFIG, len(self._config))
        try:
            config.write(memoryview(self._config), 0)
            config.sync()
            self._weights.finish()
            config.finish()
        except BaseException:
            config.abort()
            raise
        return self._folder

    def abort(self) -> None:
        self._weights.abort()
        if self._made:
            try:
                self._folder.rmdir()
            except OSError:
                pass  # somebody else has put something into it


def _config_in(folder: Path) -> str:
    path = folder / CONFIG
    if not path.is_file():
        raise UnsupportedContainer(f"{str(folder)!r} is no folder of a PEFT adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        pickled = f"; {PICKLED} is a pickle, which is never read" if (folder / PICKLED).is_file() else ""
        raise UnsupportedContainer(
            f"the adapter folder {str(folder)!r} has no {WEIGHTS}{pickled}: save it with save_pretrained()"
        )
    file = FileReader(path)
    try:
        if file.size > MAX_CONFIG:
            raise LimitExceeded(f"{str(path)!r} takes {file.size} bytes, the limit is {MAX_CONFIG}")
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0)
    finally:
        file.close()
    try:
        return _checked(repr(str(path)), content.decode())
    except UnicodeDecodeError as error:
        raise UnsupportedContainer(f"{str(path)!r} is not UTF-8: {error}") from error


def _checked(where: str, text: str) -> str:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedContainer(f"{where} has no configuration of an adapter: {error}") from error
    if not isinstance(found, dict):
        raise UnsupportedContainer(f"{where} has no configuration of an adapter: it is no JSON object")
    return text
