"""Rows about policies: statements on an open connection, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from sqlite3 import Connection

from tensorbus.bus.policies import PolicyConfig

from .values import StoredPolicy


def put(policy: StoredPolicy) -> Callable[[Connection], None]:
    """Keep a policy in the place of its namesake."""

    def operation(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO policies (name, config, created) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET config = excluded.config, created = excluded.created",
            (policy.name, json.dumps(policy.config.to_json()), policy.created.timestamp()),
        )

    return operation


def remove(name: str) -> Callable[[Connection], None]:
    """Forget a policy."""

    def operation(connection: Connection) -> None:
        connection.execute("DELETE FROM policies WHERE name = ?", (name,))

    return operation


def policies(connection: Connection) -> list[StoredPolicy]:
    """All policies, by name."""
    return [
        StoredPolicy(name, PolicyConfig.from_json(json.loads(config)), datetime.fromtimestamp(created, UTC))
        for name, config, created in connection.execute(
            "SELECT name, config, created FROM policies ORDER BY name"
        )
    ]
