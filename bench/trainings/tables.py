"""The results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from trainings.comparison import REFERENCE, Row, compare, repeated
from trainings.results import Result

TITLES = {
    "small-1": "One site, from scratch",
    "small-4": "4 sites, from scratch",
    "small-8": "8 sites, from scratch",
    "lora-1": "One site, LoRA of SmolLM2-135M-Instruct",
    "lora-4": "4 sites, LoRA of SmolLM2-135M-Instruct",
    "toy-1": "One site, a toy",
    "toy-2": "2 sites, a toy",
}


def tables(results: Sequence[Result]) -> str:
    """A table for each group that has results of full precision."""
    found = [_table(results, group, title) for group, title in TITLES.items()]
    return "\n".join(part for part in found if part)


def _table(results: Sequence[Result], group: str, title: str) -> str:
    rows = compare(results, group)
    if not rows:
        return ""
    full = next(row for row in rows if row.label == REFERENCE)
    lines = [
        f"### {title}",
        "",
        f"Full precision: {_spread(full.losses)} over {len(full.losses)} seeds.",
        "",
        "| codec | MB both ways | of full precision | final loss | paired difference (least … most) | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *(_line(row) for row in rows),
        "",
    ]
    if pairs := repeated(results, group):
        if all(first.digest[:16] == again.digest[:16] for first, again in pairs):
            found = "equal models, bit for bit"
        else:
            most = max(abs(first.final - again.final) for first, again in pairs)
            found = f"final losses differ by {most:.0e} at most"
        lines += [f"Full precision once more, with the same seeds: {found}.", ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    name = {REFERENCE: "full precision", "central": "central, no bus"}.get(row.label)
    codec = name or f"`{row.label}`".replace("|", "\\|")
    cells = [codec, "" if row.label == "central" else f"{row.bytes / 1e6:.2f}"]
    cells.append("" if row.label == "central" else f"{row.part:.1%}".replace("%", " %"))
    cells.append(f"{row.mean:.4f}" + (f" ± {row.deviation:.4f}" if len(row.losses) > 1 else ""))
    if row.label == REFERENCE:
        cells += ["", ""]
    elif row.identical:
        cells += ["0, bit for bit", row.verdict]
    else:
        least, most = min(row.differences), max(row.differences)
        bounds = f" ({least:+.4f} … {most:+.4f})" if len(row.differences) > 1 else ""
        verdict = f"**{row.verdict}**" if row.verdict == "worse" else row.verdict
        cells += [f"{row.difference:+.4f}{bounds}", verdict]
    return "| " + " | ".join(cells) + " |"


def _spread(losses: Sequence[float]) -> str:
    return f"{min(losses):.4f} … {max(losses):.4f}"
