"""Who may use a NATS server, as its operator signs it: JSON web tokens, without the tool that makes them."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys  # pyright: ignore[reportMissingTypeStubs]

_WITHOUT_LIMIT = {"subs": -1, "data": -1, "payload": -1}


class _Identity:
    """A pair of keys; ``kind`` is a prefix of nkeys."""

    def __init__(self, kind: int) -> None:
        keys: Any = nkeys
        self.seed: bytes = keys.encode_seed(os.urandom(32), kind)
        self._pair = keys.from_seed(bytearray(self.seed))
        self.name: str = self._pair.public_key.decode()

    def sign(self, whom: _Identity, what: dict[str, Any]) -> str:
        """A token of ``whom`` in the form of https://github.com/nats-io/jwt, version 2."""
        claims: dict[str, Any] = {
            "iat": int(time.time()),
            "iss": self.name,
            "sub": whom.name,
            "name": "tests",
        }
        claims["nats"] = {"version": 2, **what}
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
        content = b".".join(_encoded(json.dumps(part).encode()) for part in parts)
        return (content + b"." + _encoded(self._pair.sign(content))).decode()


@dataclass(frozen=True)
class Account:
    """An account with JetStream.

    Attributes:
        config: lines for the configuration of its servers.
    """

    config: str
    _keys: _Identity

    @classmethod
    def make(cls) -> Account:
        """An operator, and an account of theirs."""
        operator = _Identity(nkeys.PREFIX_BYTE_OPERATOR)
        system, own = _Identity(nkeys.PREFIX_BYTE_ACCOUNT), _Identity(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = {**_WITHOUT_LIMIT, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
        stores = {"mem_storage": -1, "disk_storage": -1}
        itself = operator.sign(operator, {"type": "operator", "system_account": system.name})
        tokens = {
            system.name: operator.sign(system, {"type": "account", "limits": limits}),
            own.name: operator.sign(own, {"type": "account", "limits": limits | stores}),
        }
        preload = "\n".join(f"{name}: {token}" for name, token in tokens.items())
        config = f"operator: {itself}\nsystem_account: {system.name}\nresolver: MEMORY\n"
        return cls(f"{config}resolver_preload {{\n{preload}\n}}\n", own)

    def admit(self, path: Path) -> None:
        """Write the credentials of a new user."""
        user = _Identity(nkeys.PREFIX_BYTE_USER)
        token = self._keys.sign(user, {"type": "user", "pub": {}, "sub": {}, **_WITHOUT_LIMIT})
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
