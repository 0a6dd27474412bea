"""Tokens: what proves them, how they are kept, and that their secrets are not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.access.token import Credential, TokenInfo, new_token
from tensorbus.errors import InvalidName, InvalidRequest, NotFound, StorageError, Unauthorized

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = TokenPlan("site-a", Rights(publish=("a.b",)), NOW + timedelta(days=1), Quotas(1 << 30, 4, 2))


class Noon:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = NOW

    def wall(self) -> float:
        """The time that was set."""
        return self.time.timestamp()

    def monotonic(self) -> float:
        """As good as any."""
        return 0.0


def test_a_token_is_256_bits_of_chance() -> None:
    """``tb_<id>_<secret>``, never twice the same; what is kept is its hash."""
    made = [new_token(PLAN, NOW) for _ in range(100)]
    texts = {str(credential) for _, credential in made}
    assert len(texts) == 100
    for token, credential in made:
        assert re.fullmatch(r"tb_[0-9a-f]{12}_[0-9a-f]{64}", str(credential))
        assert Credential.parse(str(credential)) == credential
        assert credential.proves(token)
        assert not credential.proves(None)
        assert not Credential(token.id, "0" * 64).proves(token)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tb_",
        "tb_00_00",
        "secret",
        "tb_" + "0" * 12 + "_" + "G" * 64,
        "tb_" + "0" * 12 + "_" + "0" * 63,
        "TB_" + "0" * 12 + "_" + "0" * 64,
        "tb_" + "0" * 12 + "_" + "0" * 64 + "\n",
        "tb_" + "٠" * 12 + "_" + "0" * 64,
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    """Malformed credentials are not looked up."""
    assert Credential.parse(text) is None
    with pytest.raises(Unauthorized):
        TokenFile(tmp_path).verify(text)


def test_no_secret_is_shown_or_kept(tmp_path: Path) -> None:
    """Neither ``repr`` nor the file, nor the error about a wrong token, holds a secret."""
    tokens = TokenFile(tmp_path)
    token, credential = tokens.create(PLAN)
    assert credential.secret not in repr(credential) + repr(token)
    assert token.hash not in repr(token)
    assert credential.secret not in tokens.path.read_text()
    assert "hash" not in token.info.to_json()
    tokens.revoke(token.id)
    with pytest.raises(Unauthorized) as refused:
        tokens.verify(str(credential))
    assert credential.secret not in str(refused.value)


def test_unknown_ids_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret and an unknown id are compared alike, in constant time, and told the same."""
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    tokens = TokenFile(tmp_path)
    token, credential = tokens.create(TokenPlan("a"))
    monkeypatch.setattr("tensorbus.bus.access.token.hmac.compare_digest", compare)
    tokens.verify(str(credential))
    said: set[str] = set()
    for wrong in (f"tb_{token.id}_{'0' * 64}", f"tb_{'0' * 12}_{credential.secret}"):
        with pytest.raises(Unauthorized) as refused:
            tokens.verify(wrong)
        said.add(str(refused.value))
    assert len(said) == 1
    assert [(len(one), len(other)) for one, other in compared] == [(64, 64)] * 3


def test_a_token_ends(tmp_path: Path) -> None:
    """An expired token is refused, with a word that helps whoever has it; it stays listed."""
    clock = Noon()
    tokens = TokenFile(tmp_path, clock)
    token, credential = tokens.create(PLAN)
    assert tokens.verify(str(credential)) == token
    clock.time += timedelta(days=1)
    with pytest.raises(Unauthorized, match="expired"):
        tokens.verify(str(credential))
    assert [kept.id for kept in tokens.tokens()] == [token.id]


def test_the_file_is_the_owners_and_replaced_as_a_whole(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; a new file takes the old one's place, so that no reader sees a half."""
    before = os.umask(0)
    try:
        tokens = TokenFile(tmp_path)
        tokens.create(PLAN)
        first = tokens.path.stat()
        tokens.create(PLAN)
    finally:
        os.umask(before)
    assert first.st_mode & 0o777 == tokens.path.stat().st_mode & 0o777 == 0o600
    assert first.st_ino != tokens.path.stat().st_ino
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tokens.json", "tokens.lock"]


def test_another_process_is_noticed(tmp_path: Path) -> None:
    """What one TokenFile changes, another one, as a running broker has it, sees at its next look."""
    broker, command = TokenFile(tmp_path), TokenFile(tmp_path)
    assert not broker.in_use
    token, credential = command.create(PLAN)
    assert broker.in_use
    # PLAN's end is long past by the system's clock.
    with pytest.raises(Unauthorized, match="expired"):
        broker.verify(str(credential))
    lasting, proof = command.create(TokenPlan("b"))
    assert broker.verify(str(proof)) == lasting
    command.revoke(lasting.id)
    with pytest.raises(Unauthorized):
        broker.verify(str(proof))
    with pytest.raises(NotFound):
        broker.revoke(lasting.id)
    assert [kept.id for kept in broker.tokens()] == [token.id]


_MAKER = """
import sys
from tensorbus.bus.access import TokenFile, TokenPlan
for _ in range(20):
    TokenFile(sys.argv[1]).create(TokenPlan("a"))
"""


def test_writers_take_turns(tmp_path: Path) -> None:
    """Several processes that make tokens at once lose none."""
    makers = [subprocess.Popen([sys.executable, "-c", _MAKER, str(tmp_path)]) for _ in range(3)]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    assert len(TokenFile(tmp_path).tokens()) == 60


def test_revoking_the_last_one_opens_nothing(tmp_path: Path) -> None:
    """Access control is on from the first token on, also when there is none left."""
    tokens = TokenFile(tmp_path)
    token, _ = tokens.create(PLAN)
    tokens.revoke(token.id)
    assert tokens.tokens() == []
    assert tokens.in_use


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "tokens": []}',
        b'{"version": 1, "tokens": [{"id": "x"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    """What cannot be read is no reason to be open: every token is refused, and the error names the file."""
    tokens = TokenFile(tmp_path)
    _, credential = tokens.create(TokenPlan("a"))
    tokens.verify(str(credential))
    tokens.path.write_bytes(content)
    assert tokens.in_use
    with pytest.raises(StorageError, match=r"tokens\.json"):
        tokens.verify(str(credential))
    with pytest.raises(StorageError, match=r"tokens\.json"):
        tokens.create(TokenPlan("b"))
    assert tokens.path.read_bytes() == content


def test_values_survive_json() -> None:
    """What is kept, or sent, is read back as it was."""
    token, _ = new_token(PLAN, NOW)
    assert type(token).from_json(json.loads(json.dumps(token.to_json()))) == token
    assert TokenPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN
    assert TokenInfo.from_json(token.info.to_json()) == token.info


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..\0", "x" * 65, "ü", "a\nb"])
def test_names_of_tokens_are_plain(name: str) -> None:
    """They go into logs and tables."""
    with pytest.raises(InvalidName):
        TokenPlan(name)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": 1},
        {"name": "a", "expires": "tomorrow"},
        {"name": "a", "expires": "2026-01-01T00:00:00"},
        {"name": "a", "max_bytes": -1},
        {"name": "a", "max_uploads": True},
        {"name": "a", "right": []},
        {"name": "a", "hash": "0" * 64},
    ],
)
def test_plans_from_outside_are_checked(document: dict[str, object]) -> None:
    """Unknown fields and wrong types are refused: a typo must not make a token without limits."""
    with pytest.raises(InvalidRequest):
        TokenPlan.from_json(document)
