"""What holds for all tests."""

from __future__ import annotations

import os

# Test files run side by side, and so do the processes that they start. Threads of OpenMP and of BLAS that
# wait for each other on processors that others use make many of them several times slower. The codecs have
# threads of their own, which this does not touch. It is set before torch and numpy are imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
