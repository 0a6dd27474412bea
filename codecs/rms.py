"""The root mean square of blocks, added up in the order of kernels/rms.h, as C does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .scratch import scratch

SUMS = 32


def rms(values: npt.NDArray[np.float32], blocksize: int) -> npt.NDArray[np.float32]:
    """sqrt(mean of squares) of each block of at most ``PIECE`` values; the last block may be short.

    A result is NaN or Inf exactly if a value of its block is. It lies in a scratch of this thread.
    """
    whole = values.size // blocksize
    blocks = -(-values.size // blocksize)
    roots = scratch("rms", blocks, np.float32)
    _rms_of_rows(values[: whole * blocksize].reshape(whole, blocksize), roots[:whole])
    if blocks > whole:
        _rms_of_rows(values[whole * blocksize :].reshape(1, -1), roots[whole:])
    return roots


def _rms_of_rows(rows: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    blocks, count = rows.shape
    sums = np.zeros((blocks, SUMS))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, count, SUMS):
            part = rows[:, start : start + SUMS].astype(np.float64)
            sums[:, : part.shape[1]] += part * part
        half = SUMS // 2
        while half:
            sums = sums[:, :half] + sums[:, half : 2 * half]
            half //= 2
        np.sqrt(sums[:, 0] / count, out=out, casting="same_kind")
