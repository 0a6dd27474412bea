"""Containers to frames and back.

Strategy of the encoder. All that can be known without reading a value is settled first, by arithmetic: the codec
of each item, how it is cut, and so the exact size of the message. Frames are then made one at a time, on demand;
each encoded slice lies in a buffer that was asked for just before and that belongs to the frame until its
sender gives it back. Values that are sent as they are and lie in memory in order are not copied at all.

Strategy of the decoder. It follows a `MessageChecker`, which has accepted each frame before. When an item is
declared, its dtype and codec are looked up and its size is held against the size of the message, before a
sink makes room for it. A slice is decoded straight into the memory that the sink gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tensorbus.codecs import registry
from tensorbus.codecs.base import Quantizer, Sink
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec, View
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import (
    CodecError,
    LimitExceeded,
    ManifestMismatch,
    PayloadMismatch,
    TensorbusError,
)

from .entries import Entry, EntryView, check_item_name
from .frames import FRAME_BYTES, PRELUDE, Frame, Kind, encode_frame, encode_head
from .headers import Envelope, HeaderValue, SliceHeader, Totals
from .limits import DEFAULT_LIMITS
from .packing import pack, pack_array
from .sequence import MessageChecker
from .slicing import slice_bounds, slice_elements, slice_header
from .sources import Source
from .tally import Tally
