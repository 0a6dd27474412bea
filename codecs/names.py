"""What an item may be called."""

from __future__ import annotations

import re

from tensorbus.errors import InvalidName

MAX_NAME = 1024
"""Characters."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|(?:^|[/\\])\.\.?(?:[/\\]|$)")


def check_item_name(name: object) -> str:
    """``name`` itself, if it may name an item.

    That is a text of 1 to 1024 characters, without control characters, and without ``.`` or ``..`` between
    slashes.

    Raises:
        InvalidName: it may not.
    """
    if not isinstance(name, str):
        raise InvalidName(f"an item's name is a text, not {type(name).__name__}: {name!r:.80}")
    if not 0 < len(name) <= MAX_NAME:
        raise InvalidName(f"an item's name has 1 to {MAX_NAME} characters, not {len(name)}: {name!r:.80}")
    if found := _FORBIDDEN.search(name):
        raise InvalidName(f"an item's name cannot contain {found[0]!r}: {name!r:.80}")
    return name
