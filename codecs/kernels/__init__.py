"""The compiled half of the codecs: a small C file for each idea, and the loader of what was built of them."""

from __future__ import annotations

from .loader import KernelStatus, declaring, forced, native, pointer, status, usable

__all__ = ["KernelStatus", "declaring", "forced", "native", "pointer", "status", "usable"]
