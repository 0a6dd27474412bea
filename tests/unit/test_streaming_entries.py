"""Promises about manifest entries and msgpack from outside: strange input is an error and takes no memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.names import check_item_name as check_codec_name
from tensorbus.errors import FrameError, InvalidName, LimitExceeded, TensorbusError
from tensorbus.streaming.entries import check_item_name, parse_entry
from tensorbus.streaming.packing import pack, unpack, unpack_array

GOOD: dict[str, object] = {"n": "a", "d": "float32", "s": [2, 3], "q": {"name": "none"}}
NUL, CONTROL = "a\0b", "a\x1bb"


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "..double..dots..",
        "a/b:c d",
        "ключ/重み",
        "x" * 1024,
        "...",
    ],
)
def test_names_are_plain_text(name: str) -> None:
    """What frameworks call their tensors is accepted: dots, slashes, spaces, any script, 1024 characters."""
    assert check_item_name(name) == check_codec_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/../b",
        "../etc/passwd",
        "a\\..\\b",
        "./a",
        NUL,
        CONTROL,
        "a\nb",
        "\x7f",
        "\x85",
        "\ud800",
        "x" * 1025,
        "x" * 10_000,
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    """Empty and endless names, control characters, half surrogates, path segments: refused on both sides."""
    with pytest.raises(InvalidName) as caught:
        check_item_name(name)
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidName):
        check_codec_name(name)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"n": None}, FrameError, "'n' must be text"),
        ({"n": NUL}, InvalidName, "control"),
        ({"d": "Float 32"}, FrameError, "'a'.*not spelled as a dtype"),
        ({"d": "x" * 40}, FrameError, "not spelled as a dtype"),
        ({"d": 5}, FrameError, "'d' must be text"),
        ({"s": 3}, FrameError, "'s' must be an array"),
        ({"s": [2, -1]}, FrameError, "non-negative"),
        ({"s": [2, True]}, FrameError, "bool True"),
        ({"s": [2, 2.0]}, FrameError, "float 2.0"),
        ({"s": [2**63]}, LimitExceeded, "9223372036854775808"),
        ({"s": [2**31, 2**31]}, LimitExceeded, "'a'.*too many elements"),
        ({"s": [2**20] * 64}, LimitExceeded, "too many elements"),
        ({"s": [0, 2**40, 2**40]}, LimitExceeded, "too many elements"),
        ({"s": [1] * 65}, LimitExceeded, "65 entries"),
        ({"k": "pickle"}, FrameError, "kind"),
        ({"k": ["tensor"]}, FrameError, "kind"),
        ({"k": "scalar"}, FrameError, "plain row of uint8"),
        ({"k": "scalar", "d": "uint8", "s": [2 << 20]}, LimitExceeded, "scalar of 2097152 bytes"),
        ({"k": "bytes", "d": "uint8", "s": [4], "q": {"name": "nf4"}}, FrameError, "plain row of uint8"),
        ({"q": "nf4"}, FrameError, "'q' must be a map"),
        ({"q": {}}, FrameError, "no proper name"),
        ({"q": {"name": "../../evil"}}, FrameError, "no proper name"),
        ({"q": {"name": "x" * 65}}, FrameError, "no proper name"),
        ({"q": {"name": "nf4", "x": b"bytes"}}, FrameError, "JSON"),
        ({"q": {"name": "nf4", "x": float("inf")}}, FrameError, "JSON"),
        ({"v": [1]}, FrameError, "'v' must be a map"),
        ({"v": {"of": "b", "o": 0, "s": [1]}}, FrameError, "1 strides for 2 dimensions"),
        ({"v": {"of": "b", "o": -1, "s": [1, 1]}}, FrameError, "non-negative"),
        ({"v": {"of": "..", "o": 0, "s": [1, 1]}}, InvalidName, "'..'"),
        ({"v": {"of": "b", "o": 0, "s": [2**64 - 1, 1]}}, LimitExceeded, "the limit is 9223372036854775807"),
    ],
)
def test_a_malformed_entry_is_refused(
    change: Mapping[str, object], error: type[TensorbusError], text: str
) -> None:
    """Every field has a type and a limit, and the error names the item."""
    with pytest.raises(error, match=text):
        parse_entry(unpack(pack({**GOOD, **change})))


def test_an_unknown_field_is_passed_over() -> None:
    """A later release may add hints to an entry without a new version."""
    assert parse_entry({**GOOD, "hint": 1}).to_map() == GOOD


BOMBS = {
    "an array of 2^32 - 1": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of 2^32 - 1": b"\x81\xa1a\xdf\xff\xff\xff\xff",
    "a text of 4 GiB": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an extension of 4 GiB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "arrays of 65535, nested 1000 deep": b"\x81\xa1a" + b"\xdc\xff\xff" * 1000,
    "arrays of 256, nested 1000 deep": b"\x81\xa1a" + b"\xdc\x01\x00" * 1000,
    "maps, nested 60000 deep": b"\x81\xa1a" * 20_000,
    "arrays, nested 60000 deep": b"\x81\xa1a" + b"\x91" * 60_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_msgpack_bomb_goes_off_in_the_open(bomb: str) -> None:
    """Lengths that the bytes do not back, and nesting without end, are errors and take no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            unpack(BOMBS[bomb])
        with pytest.raises(FrameError):
            list(unpack_array(b"\x91" + BOMBS[bomb], 100))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_manifest_announces_no_more_than_it_holds() -> None:
    """The manifest's own array is read entry by entry, so its length is only a claim."""
    assert list(unpack_array(b"\x90", 10)) == []
    with pytest.raises(LimitExceeded, match="4294967295 entries, the limit is 65536"):
        list(unpack_array(b"\xdd\xff\xff\xff\xff", 65_536))
    with pytest.raises(FrameError, match="cut short"):
        list(unpack_array(b"\xdd\0\0\xff\xff\x80", 65_536))
    with pytest.raises(FrameError, match="2 bytes follow"):
        list(unpack_array(b"\x91\x80\x80\x80", 10))
    for no_array in (b"\x80", b"", b"\xc1"):
        with pytest.raises(FrameError):
            list(unpack_array(no_array, 10))


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_a_map_or_an_error(data: bytes) -> None:
    """Whatever the bytes, the answer is a map with text keys or a FrameError, never anything else."""
    try:
        found = unpack(data)
    except FrameError:
        return
    assert all(isinstance(key, str) for key in found)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(change=st.dictionaries(st.sampled_from(["n", "d", "s", "k", "q", "v", "z"]), json_values, max_size=3))
def test_an_arbitrary_entry_is_legal_or_refused(change: dict[str, object]) -> None:
    """Whatever an entry holds, it is an Entry that survives the round trip or one of our errors."""
    try:
        entry = parse_entry(unpack(pack({**GOOD, **change})))
    except TensorbusError:
        return
    assert parse_entry(entry.to_map()) == entry
