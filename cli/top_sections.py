"""The parts of `tensorbus top`: each a table, made of the broker's status. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.progress_bar import ProgressBar
from rich.text import Text

from .output import share, size
from .top_reading import Part
from .top_section import BAR, Cell, Section

ORDER = ("sending", "late", "waited", "in", "declined", "left")
"""States of a site, those that want to be looked at first."""
STATES = {
    "open": "green", "in": "green", "done": "green", "sending": "cyan", "closing": "cyan", "waited": "dim",
    "waiting": "dim", "late": "yellow", "paused": "yellow", "declined": "dim", "left": "dim",
    "cancelled": "red", "overdue": "yellow",
}  # fmt: skip
SPARKS = "▁▂▃▄▅▆▇█"


def sections(status: Part, now: datetime) -> list[Section]:
    """All parts that have something in them, the most important one first."""
    parts = (_jobs(status, now), _sites(status), _transfers(status), _brokers(status, now))
    rest = (_consumers(status), _topics(status), _codecs(status), _quotas(status))
    return [section for section in (*parts, *rest) if section.rows]


def _jobs(status: Part, now: datetime) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for job in status.part("jobs").parts("shown"):
        counts = job.part("counts")
        known = sum(map(counts.count, ORDER)) - counts.count("left")
        of = f"{counts.count('in')} of {job.count('full') or known}"
        enough = job.count("enough")
        rows.append(
            (
                Text(job.text("job"), style="bold"),
                f"{job.count('round')} of {job.count('rounds')}" if job.number("rounds") else "",
                _state("overdue" if job.flag("overdue") else job.text("state"), job),
                f"{of} ({enough} enough)" if enough and enough != job.count("full") else of,
                _losses(job.parts("history")),
                _until(job.time("due"), now),
                _since(job.time("opened"), now),
                f"↓ {job.text('down') or 'none'}  ↑ {job.text('up') or 'none'}",
            )
        )
    columns = ("JOBS", "round", "is", "updates in", "loss by round", ">deadline", ">began", "codecs")
    return Section(columns, rows, status.part("jobs").count("count"))


def _state(name: str, job: Part) -> Text:
    publishing = job.part("publishing")
    if publishing:
        total = publishing.number("total")
        return Text(
            f"publishing {share(publishing.count('bytes'), int(total)) if total else ''}", style="cyan"
        )
    return Text(name, style=STATES.get(name, ""))


def _losses(history: Sequence[Part]) -> str:
    """How the loss went: ``▇▅▃▁ 3.697 → 2.312``."""
    rounds = [entry.part("metrics").numbers() for entry in history]
    names = list(rounds[-1]) if rounds else []
    name = "loss" if "loss" in names else next(iter(names), None)
    if name is None:
        return ""
    values = [metrics[name] for metrics in rounds if name in metrics]
    low, high = min(values), max(values)
    spread = high - low
    shown = "".join(SPARKS[round((value - low) / spread * 7) if spread else 0] for value in values[-12:])
    way = f"{values[0]:.4g} → {values[-1]:.4g}" if len(values) > 1 else f"{values[0]:.4g}"
    return f"{shown} {way}" if name == "loss" else f"{shown} {name} {way}"


def _sites(status: Part) -> Section:
    found = [(job, site) for job in status.part("jobs").parts("shown") for site in job.parts("sites")]
    rank = {state: place for place, state in enumerate(ORDER)}
    found.sort(key=lambda each: rank.get(each[1].text("state"), len(ORDER)))
    rows: list[tuple[Cell, ...]] = []
    for job, site in found:
        state = site.text("state")
        metrics = site.part("metrics").numbers()
        loss = metrics.get("loss")
        told = (
            f"loss {loss:.4g}" if loss is not None else "".join(f"{k} {v:.4g} " for k, v in metrics.items())
        )
        examples = site.number("num_examples")
        moved, total = site.number("bytes"), site.number("total")
        rows.append(
            (
                Text(f"{site.text('site')}"),
                job.text("job"),
                Text(state, style=STATES.get(state, "")),
                _bar(moved, total) if state == "sending" else told or site.text("reason"),
                "" if moved is None else size(int(moved)),
                "" if examples is None else f"{examples:,.0f}",
            )
        )
    return Section(("SITES", "job", "is", "says", ">update", ">examples"), rows, len(rows))


def _transfers(status: Part) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for transfer in status.part("transfers").parts("shown"):
        up = transfer.text("direction") == "upload"
        moved, total, rate = transfer.number("bytes"), transfer.number("total"), transfer.number("rate")
        left = None if not rate or total is None or moved is None else (total - moved) / rate
        idle = transfer.flag("idle")
        rows.append(
            (
                Text(f"{'↑' if up else '↓'} {transfer.text('topic')}", style="dim" if idle else ""),
                _bar(moved, total),
                f"{_size(moved)} of {_size(total)}",
                Text("nobody sends", style="yellow") if idle else _rate(rate),
                "" if left is None else span(left),
                transfer.text("site"),
                transfer.text("message")[:8],
            )
        )
    columns = ("TRANSFERS", "", ">so far", ">rate", ">left", "site", "message")
    return Section(columns, rows, status.part("transfers").count("count"))


def _brokers(status: Part, now: datetime) -> Section:
    """Those that share a store; of one that is not shared there are none."""
    rows: list[tuple[Cell, ...]] = []
    for broker in status.part("brokers").parts("shown"):
        away, behind = broker.time("away"), broker.number("behind")
        state = Text("leads", style="green") if broker.flag("leads") else Text("stands by", style="dim")
        if away is not None:
            state = Text(f"away for {span((now - away).total_seconds())}", style="red")
        late = "?" if behind is None else f"{behind:,.0f}"
        figures: list[Cell] = [
            Text(late, style="dim" if behind == 0 else "yellow"),
            f"{broker.count('uploads'):,}",
            f"{broker.count('downloads'):,}",
            _rate(broker.number("received")),
            _rate(broker.number("sent")),
        ]
        rows.append((broker.text("url"), state, *([""] * len(figures) if away is not None else figures)))
    columns = ("BROKERS", "", ">behind", ">uploads", ">downloads", ">in", ">out")
    return Section(columns, rows, status.part("brokers").count("count"))


def _consumers(status: Part) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for consumer in status.part("consumers").parts("shown"):
        dead, again = consumer.count("dead"), consumer.count("redelivering")
        rows.append(
            (
                consumer.text("name"),
                f"{consumer.count('backlog'):,}",
                f"{consumer.count('ack_pending'):,}",
                Text(f"{again:,}", style="yellow" if again else "dim"),
                Text(f"{dead:,}", style="red" if dead else "dim"),
                consumer.text("filter"),
            )
        )
    columns = ("CONSUMERS", ">lag", ">unsettled", ">redelivered", ">dead", "filter")
    return Section(columns, rows, status.part("consumers").count("count"))


def _topics(status: Part) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (
            topic.text("topic"),
            f"{topic.count('messages'):,}",
            size(topic.count("bytes")),
            f"{topic.count('first_seq')}–{topic.count('last_seq')}",
        )
        for topic in status.part("topics").parts("shown")
    ]
    return Section(("TOPICS", ">messages", ">stored", ">seq"), rows, status.part("topics").count("count"))


def _codecs(status: Part) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for codec in status.parts("codecs"):
        came, went = codec.part("received"), codec.part("sent")
        original, wire = (came.count(kind) + went.count(kind) for kind in ("original_bytes", "wire_bytes"))
        rows.append(
            (
                codec.text("codec") or "none",
                f"{came.count('messages'):,}",
                f"{went.count('messages'):,}",
                size(original),
                size(wire),
                share(wire, original),
                Text(size(max(0, original - wire)), style="green" if original > wire else "dim"),
            )
        )
    columns = ("CODECS", ">received", ">sent", ">values", ">on the wire", ">of it", ">saved")
    return Section(columns, rows, len(rows))


def _quotas(status: Part) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for quota in status.part("quotas").parts("shown"):
        used, most = quota.number("bytes"), quota.number("max_bytes")
        messages, limit = quota.number("messages"), quota.number("max_messages")
        rows.append(
            (
                quota.text("name"),
                _bar(used, most) if most else "",
                _size(used) + (f" of {_size(most)}" if most is not None else ""),
                "" if messages is None else f"{messages:,.0f}" + (f" of {limit:,.0f}" if limit else ""),
                quota.text("kind"),
                quota.text("filter"),
            )
        )
    columns = ("QUOTAS", "", ">stored", ">messages", "of a", "filter")
    return Section(columns, rows, status.part("quotas").count("count"))


# --- words -------------------------------------------------------------------------------------------


def _bar(done: float | None, total: float | None) -> ProgressBar | str:
    if done is None or not total:
        return ""
    return ProgressBar(total=total, completed=min(done, total), width=BAR)


def _size(count: float | None) -> str:
    return size(None if count is None else int(count))


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{size(int(rate))}/s"


def _since(moment: datetime | None, now: datetime) -> str:
    return "" if moment is None else f"{span((now - moment).total_seconds())} ago"


def _until(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return ""
    left = (moment - now).total_seconds()
    return f"in {span(left)}" if left >= 0 else f"{span(-left)} ago"


def span(seconds: float) -> str:
    """A length of time in words: ``12 s``, ``3 min``, ``2 h 05 min``, ``4 d 3 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 60:
        return f"{minutes} min {whole % 60:02} s" if minutes < 10 else f"{minutes} min"
    return f"{hours} h {minutes % 60:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
