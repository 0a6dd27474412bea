"""The demo, run as a user runs it: every part a real process, with a toy model so that it takes seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from tensorbus.cli import demo
from tensorbus.demo.plot import held_out_losses, plot, step_losses

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in demo.NEEDED),
    reason="the [demo] extra is not installed",
)

Event = dict[str, object]
ROUNDS, STEPS, SITES = 2, 2, ("site-a", "site-b")


class Run:
    """A finished run: its events, and its report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        done = subprocess.run(
            command(folder, "--rounds", str(ROUNDS), "--steps", str(STEPS)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.code, self.errors = done.returncode, done.stderr
        self.events = [cast(Event, json.loads(line)) for line in done.stdout.splitlines()]

    def of(self, name: str) -> list[Event]:
        """The events of one name, in order."""
        return [event for event in self.events if event["event"] == name]

    @property
    def report(self) -> dict[str, object]:
        """What it wrote into its folder."""
        return json.loads((self.folder / "report.json").read_text())


def command(folder: Path, *options: str) -> list[str]:
    """The command line of a toy demo."""
    return [sys.executable, "-m", "tensorbus", "demo", "--tiny", "--json", "--output", str(folder), *options]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with changes in nf4 both ways, looked at from all sides below."""
    return Run(tmp_path_factory.mktemp("demo"))


def test_it_runs_to_the_end(run: Run) -> None:
    """Every round of every site happens, and the exit code says so."""
    assert run.code == 0, run.errors
    told = [(event["process"], event["round"], event["step"]) for event in run.of("step")]
    expected = [
        (site, number, step)
        for site in SITES
        for number in range(1, ROUNDS + 1)
        for step in range(1, STEPS + 1)
    ]
    assert sorted(told, key=str) == sorted(expected, key=str)


def test_the_report_is_complete(run: Run) -> None:
    """The file holds a loss for every round, every message, and the memory of every process."""
    report = run.report
    assert len(step_losses(report)) == ROUNDS * STEPS
    assert len(held_out_losses(report)) == ROUNDS + 1
    messages = cast("list[dict[str, object]]", report["messages"])
    told = sorted((str(message["site"]), str(message["direction"]), message["round"]) for message in messages)
    downs = [(site, "down", number) for site in SITES for number in range(1, ROUNDS + 2)]
    ups = [(site, "up", number) for site in SITES for number in range(1, ROUNDS + 1)]
    assert told == sorted(downs + ups)
    assert set(cast("dict[str, object]", report["peak_growth"])) == {"broker", "aggregator", *SITES}


def test_every_message_is_quantised(run: Run) -> None:
    """nf4 takes 14.06 % of fp32, whichever way; the frames around it add little. The first model is the one
    that the sites have: nothing of it is sent but names."""
    for message in cast("list[dict[str, float]]", run.report["messages"]):
        share = message["bytes"] / message["original_bytes"]
        if (message["direction"], message["round"]) == ("down", 1):
            assert share < 0.001
        else:
            assert 0.1406 <= share < 0.1420


def test_all_sites_end_with_the_same_model(run: Run) -> None:
    """The final model is the same at every site, to the last bit."""
    digests = [event["digest"] for event in run.of("final")]
    assert len(digests) == len(SITES)
    assert len(set(digests)) == 1


def test_the_text_is_split_by_topic(run: Run) -> None:
    """No topic is trained on at two sites."""
    shares = [cast("list[str]", event["topics"]) for event in run.of("share")]
    assert len(shares) == len(SITES)
    assert not set(shares[0]) & set(shares[1])


def test_it_draws_the_loss(run: Run, tmp_path: Path) -> None:
    """There is a picture of the run, and several runs fit into one."""
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    plot([run.report, run.report], tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_it_leaves_nothing_behind(run: Run) -> None:
    """Afterwards the broker is gone, and of the folder only report, picture and logs are left."""
    pid = cast(int, run.of("ready")[0]["pid"])
    assert not is_running(pid)
    assert sorted(path.name for path in run.folder.iterdir()) == ["logs", "loss.png", "report.json"]


def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    """Interrupted while the sites start, it stops its processes and ends with exit code 130."""
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        try:
            events = read_events(process)
            broker = cast(int, next(event for event in events if event["event"] == "ready")["pid"])
            site = next(event for event in events if str(event["process"]).startswith("site"))
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert site["event"] == "phase"
    assert process.returncode == 130
    assert not is_running(broker)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_process_that_fails_ends_the_run(tmp_path: Path) -> None:
    """A broker whose port is taken ends the demo with exit code 1, and its last words are shown."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(tmp_path, "--port", str(port)), capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1
    assert "broker ended with exit code 1" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_codec_is_refused_at_once(tmp_path: Path) -> None:
    """Nothing is started for a codec that does not exist."""
    done = subprocess.run(command(tmp_path, "--codec", "nf5"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "nf5" in done.stderr
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the demo says what is missing and how to install it."""
    monkeypatch.setattr(demo, "NEEDED", ("no_such_package",))
    result = CliRunner().invoke(demo.command)
    assert result.exit_code == 1
    assert "no_such_package" in result.output
    assert "pip install" in result.output


def is_running(pid: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def read_events(process: subprocess.Popen[str]) -> Iterator[Event]:
    """The events of a run as they come."""
    assert process.stdout is not None
    for line in process.stdout:
        yield cast(Event, json.loads(line))
