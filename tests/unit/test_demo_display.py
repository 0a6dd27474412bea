"""What the demo shows while it runs, and what it makes of the events of its processes."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tensorbus.demo.display import SILENCE, JsonView, LineView, LiveView, View
from tensorbus.demo.events import SiteEvents
from tensorbus.demo.memory import PeakMeter
from tensorbus.demo.processes import Event
from tensorbus.demo.report import print_tables
from tensorbus.demo.scoreboard import Scoreboard
from tensorbus.demo.settings import DemoSettings

MIB = 1 << 20


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def site_events(loss: float) -> list[Event]:
    """What a site tells of one round, in the words of SiteEvents itself."""
    stream = io.StringIO()
    events = SiteEvents(stream)
    with events.transfer("down", 1) as transfer:
        transfer.moved(14 * MIB, 100 * MIB)
    with events.phase("evaluate", 1):
        events.emit("evaluated", round=1, loss=loss + 1, tokens=10)
    with events.phase("train", 1):
        events.emit("step", round=1, step=1, steps=1, loss=loss)
    with events.transfer("up", 1) as transfer:
        transfer.moved(14 * MIB, 100 * MIB)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def play(scores: Scoreboard, view: View) -> None:
    """One round of two sites."""
    played: list[tuple[str, Event]] = [
        ("broker", {"event": "ready", "url": "http://127.0.0.1:1234"}),
        ("aggregator", {"event": "round", "round": 1, "rounds": 1, "sites": 2}),
        *(("site-a", event) for event in site_events(2.0)),
        ("aggregator", {"event": "folding", "site": "a", "bytes": 0, "total_bytes": 14 * MIB}),
        ("aggregator", {"event": "folded", "site": "a", "updates": 1, "expected": 2}),
        *(("site-b", event) for event in site_events(4.0)),
        ("aggregator", {"event": "publishing", "round": 2, "bytes": MIB, "total_bytes": 14 * MIB}),
        ("aggregator", {"event": "published", "round": 2, "final": True}),
    ]
    with view:
        for process, event in played:
            if process not in scores.doing:
                scores.begins(process, "starting")
            scores.take(process, event)
            view.event(process, event)
            view.tick()


def settings(tmp_path_factory: pytest.TempPathFactory) -> DemoSettings:
    """Of one round of two sites."""
    return DemoSettings(
        down="nf4",
        up="nf4",
        keep=(),
        sites=2,
        rounds=1,
        steps=1,
        seed=0,
        tiny=True,
        port=0,
        output=tmp_path_factory.getbasetemp(),
        keep_data=False,
    )


def test_lines_tell_the_round_the_loss_and_the_bytes() -> None:
    """In a log, a person reads what happened, with the share of fp32 that was sent."""
    out = io.StringIO()
    scores = Scoreboard(1)
    play(scores, LineView(scores, Console(file=out, width=200)))
    text = out.getvalue()
    assert "round 1 of 1 begins" in text
    assert "held-out loss 3.000" in text
    assert "loss 2.000" in text
    assert "14.0 MiB (14.00 % of fp32)" in text


def test_the_live_table_shows_every_process() -> None:
    """On a terminal there is a row for each process, with what it is at."""
    out = io.StringIO()
    scores = Scoreboard(1)
    play(scores, LiveView(scores, Console(file=out, force_terminal=True, width=160)))
    text = out.getvalue()
    assert all(name in text for name in ("broker", "aggregator", "site-a", "site-b"))
    assert "Round 1 of 1" in text
    assert "sending its update" in text


def test_json_lines_carry_the_name_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets every event as it was told, one a line."""
    scores = Scoreboard(1)
    play(scores, JsonView(scores))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["process"] for event in events} == {"broker", "aggregator", "site-a", "site-b"}


def test_a_silence_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    """When nothing happens for a while, the plain views say what everybody is at."""
    clock = Clock()
    scores = Scoreboard(1, clock)
    out = io.StringIO()
    lines, objects = LineView(scores, Console(file=out, width=200)), JsonView(scores)
    scores.begins("site-a", "training")
    clock.now += SILENCE - 1
    lines.tick()
    objects.tick()
    assert out.getvalue() == "" == capsys.readouterr().out
    clock.now += 2
    lines.tick()
    objects.tick()
    assert "site-a: training" in out.getvalue()
    assert json.loads(capsys.readouterr().out)["doing"] == {"site-a": "training"}


def test_the_tables_sum_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tables at the end weigh the held-out loss by tokens and the messages by bytes."""
    out = io.StringIO()
    scores = Scoreboard(1)
    play(scores, JsonView(scores))
    print_tables(Console(file=out, width=120), settings(tmp_path_factory), scores)
    text = out.getvalue()
    assert "14.00 %" in text
    assert "4.0000" in text  # held-out: (3 + 5) / 2
    assert "3.0000" in text  # training: (2 + 4) / 2


def test_memory_that_comes_and_goes_is_seen() -> None:
    """The meter sees a peak that is over when it is read."""
    meter = PeakMeter()
    if meter.growth() is None:
        pytest.skip("this system does not tell")
    block = bytearray(b"\1") * (64 * MIB)
    del block
    assert 60 * MIB < (meter.growth() or 0) < 80 * MIB
