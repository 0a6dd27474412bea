"""The alert rules of deploy/observe: promtool plays series to them and says which fire, and when."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

OBSERVE = Path(__file__).resolve().parents[2] / "deploy/observe"
FREE, SIZE = "tensorbus_disk_free_bytes", "tensorbus_disk_size_bytes"
BACKLOG = 'tensorbus_consumer_backlog{consumer="reader"}'
REQUESTS = "tensorbus_http_requests_total"
SYNCS = "tensorbus_fsync_duration_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Case:
    """Series, a sample a minute in promtool's notation, and whether the alert fires after so many minutes."""

    alert: str
    series: dict[str, str]
    minutes: int
    fires: bool


UP = 'up{job="tensorbus"}'
LEADS_A, LEADS_B = 'tensorbus_leads{instance="a"}', 'tensorbus_leads{instance="b"}'
CASES = [
    Case("TensorbusDown", {UP: "1 0x9"}, 5, True),
    Case("TensorbusDown", {"another": "1x9"}, 5, True),
    Case("TensorbusDown", {UP: "1x9"}, 5, False),
    Case("TensorbusDown", {UP: "1 0 1x8"}, 2, False),  # away for less than a minute
    Case("TensorbusNoLeader", {LEADS_A: "1 0x9", LEADS_B: "0x10"}, 5, True),
    Case("TensorbusNoLeader", {LEADS_A: "1 0x9", LEADS_B: "0 0 1x8"}, 5, False),
    Case("TensorbusNoLeader", {UP: "1x10"}, 5, False),  # a store that is not shared
    Case("TensorbusStoreUnreachable", {"tensorbus_store_connected": "1 0x9"}, 5, True),
    Case("TensorbusStoreUnreachable", {"tensorbus_store_connected": "1 0 1x8"}, 5, False),
    Case("TensorbusDamage", {"tensorbus_damaged_messages": "0 1x5"}, 2, True),
    Case("TensorbusDamage", {"tensorbus_damaged_messages": "0x5"}, 2, False),
    Case("TensorbusDiskNearlyFull", {FREE: "9x20", SIZE: "100x20"}, 10, True),
    Case("TensorbusDiskNearlyFull", {FREE: "9x20", SIZE: "100x20"}, 3, False),
    Case("TensorbusDiskNearlyFull", {FREE: "11x20", SIZE: "100x20"}, 10, False),
    Case("TensorbusDiskFull", {FREE: "1x20", SIZE: "100x20"}, 3, True),
    Case("TensorbusDiskFull", {FREE: "3x20", SIZE: "100x20"}, 3, False),
    Case("TensorbusDeadLetters", {"tensorbus_dead_letters_total": "0 0 1x10"}, 4, True),
    Case("TensorbusDeadLetters", {"tensorbus_dead_letters_total": "7x30"}, 20, False),
    Case("TensorbusDeadLetters", {"tensorbus_dead_letters_total": "0 0 1x30"}, 25, False),  # an old one
    Case("TensorbusConsumerLag", {BACKLOG: "1+1x60"}, 45, True),
    Case("TensorbusConsumerLag", {BACKLOG: "1+1x60"}, 25, False),
    Case("TensorbusConsumerLag", {BACKLOG: "100-1x60"}, 45, False),  # long, and getting shorter
    Case("TensorbusConsumerLag", {BACKLOG: "0 5 9 13 " * 15}, 45, False),  # rounds: empty in between
    Case(
        "TensorbusServerErrors",
        _share := {f'{REQUESTS}{{status="507"}}': "0+6x20", f'{REQUESTS}{{status="200"}}': "0+60x20"},
        15,
        True,
    ),
    Case("TensorbusServerErrors", _share, 3, False),
    Case(
        "TensorbusServerErrors",
        {f'{REQUESTS}{{status="404"}}': "0+60x20", f'{REQUESTS}{{status="200"}}': "0+60x20"},
        15,
        False,
    ),
    Case(
        "TensorbusSlowDisk",
        {
            f'{SYNCS}{{kind="rows",le="1.0"}}': "0x30",
            f'{SYNCS}{{kind="rows",le="2.5"}}': "0+9x30",
            f'{SYNCS}{{kind="rows",le="+Inf"}}': "0+9x30",
        },
        20,
        True,
    ),
    Case(
        "TensorbusSlowDisk",
        {
            f'{SYNCS}{{kind="rows",le="1.0"}}': "0+9x30",
            f'{SYNCS}{{kind="rows",le="2.5"}}': "0+9x30",
            f'{SYNCS}{{kind="rows",le="+Inf"}}': "0+9x30",
        },
        20,
        False,
    ),
]


def promtool(*arguments: str | Path) -> str:
    """What it says, which is that all is well."""
    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Debian's package prometheus is not installed")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_configurations_are_valid() -> None:
    """As Prometheus itself checks them; the token and the authority of the secure one are not here."""
    assert "10 rules found" in promtool("check", "rules", OBSERVE / "alerts.yml")
    promtool("check", "config", OBSERVE / "prometheus.yml")
    for name in ("secure", "cluster"):
        promtool("check", "config", "--syntax-only", OBSERVE / f"prometheus.{name}.yml")


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """Each rule has a case in which it fires and one in which it does not."""
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires == fires} == _names()
    expressions = [
        {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": values.strip()} for name, values in case.series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
                }
            ],
        }
        for case in CASES
    ]
    # JSON is YAML.
    rules = {"rule_files": [str(OBSERVE / "alerts.yml")], "evaluation_interval": "1m", "tests": expressions}
    (tmp_path / "cases.yml").write_text(json.dumps(rules))
    promtool("test", "rules", tmp_path / "cases.yml")


def _names() -> set[str]:
    lines = (OBSERVE / "alerts.yml").read_text().splitlines()
    return {line.split("alert: ")[1] for line in lines if "- alert: " in line}
