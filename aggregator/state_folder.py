"""StateFolder: what a site, or an aggregator, keeps on disk for one job.

    DIR/<name>/model-<digest>.safetensors    the round's model as it was decoded: what changes are from
    DIR/<name>/model-arriving.safetensors    the same before its digest is known
    DIR/<name>/lock                          held by the process that keeps models here
    DIR/<name>/base.safetensors              at an aggregator: the first model, where it came as a seed
    DIR/<name>/relay.frames                  at a region: a model that is passed on, as it came
    DIR/<name>/residuals/                    what quantising left out so far

A model is as large as it is in memory, which is why it is here and not there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import StorageError, StoreInUse
from tensorbus.streaming.residual_files import FileResiduals

ENVIRONMENT = "TENSORBUS_STATE"
"""Names the folder where none is given."""


class StateFolder:
    """Made when it is first needed. Its methods block.

    Args:
        root: shared by any number of jobs and sites; None is what ``TENSORBUS_STATE`` says, and without that
            a temporary folder, which is gone with the process.
        name: of the part that is this one's.
    """

    def __init__(self, root: Path | None, name: str) -> None:
        self._name = name
        told = os.environ.get(ENVIRONMENT)
        self._root = root or (Path(told) if told else None)
        self._path: Path | None = None
        self._residuals: FileResiduals | None = None
        self._unlock: Callable[[], object] | None = None

    @property
    def lasting(self) -> bool:
        """Whether it is still there when the process is not."""
        return self._root is not None

    def path(self) -> Path:
        """The folder.

        Raises:
            StorageError: it cannot be made.
        """
        if self._path is None:
            try:
                self._path = self._made()
            except OSError as error:
                raise StorageError(f"the state folder cannot be made: {error}") from error
        return self._path

    def model(self, digest: str) -> Path:
        """Where the model of this digest lies, or will lie."""
        return self.path() / f"model-{digest}.safetensors"

    def arriving(self) -> Path:
        """Where a model will lie of which the digest is not known yet.

        Raises:
            StoreInUse: another process, or another object of this one, keeps its models in this folder.
        """
        self._lock()
        return self.path() / "model-arriving.safetensors"

    def keep_model(self, digest: str) -> None:
        """The model that has arrived is this one; remove all others."""
        if self.arriving().exists():
            self.arriving().replace(self.model(digest))
        for path in self.path().glob("model-*"):
            if path != self.model(digest):
                path.unlink(missing_ok=True)

    def base(self) -> Path:
        """Where the first model lies, or will lie."""
        return self.path() / "base.safetensors"

    def relay(self) -> Path:
        """Where a region keeps the frames of a model from above until it has passed them on."""
        return self.path() / "relay.frames"

    def residuals(self) -> Residuals:
        """The residuals of this job.

        Raises:
            StoreInUse: another process has them.
            StoreDamaged, StoreVersion, StorageError: they cannot be used.
        """
        if self._residuals is None:
            self._residuals = FileResiduals(self.path() / "residuals")
        return self._residuals

    def release(self) -> None:
        """Let others work in it. What is here stays, and it is taken again when it is needed."""
        if self._residuals is not None:
            self._residuals.close()
            self._residuals = None
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def remove(self) -> None:
        """The job is done: nothing of it is needed any more."""
        self.release()
        path = self._path if self._root is None else self._root / self._name
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        self._path = None

    def _lock(self) -> None:
        """Keep others from writing models here, until this object is gone."""
        if self._unlock is not None:
            return
        path = self.path()
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"the state folder {path} cannot be locked: {error}") from error
        unlock = weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            unlock()
            raise StoreInUse(
                f"the state folder {path} is in use by another process of this site; each needs a folder of "
                f"its own (state=…, or {ENVIRONMENT})"
            ) from error
        self._unlock = unlock

    def _made(self) -> Path:
        if self._root is None:
            path = Path(tempfile.mkdtemp(prefix=f"tensorbus-{self._name}-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        else:
            path = self._root / self._name
            path.mkdir(parents=True, exist_ok=True)
        return path
