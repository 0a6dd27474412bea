"""What the seeds say: each codec against full precision, by the final held-out loss.

Two questions are asked of a codec. Does its mean over the seeds lie between the best and the worst seed of
full precision? Then it is *inside*, and what it costs is less than chance does. And how far is it from full
precision with the same first weights and the same order of the text? That *paired difference* has most of the
chance taken out of it, and shows much smaller effects; it may be on one side of zero with all seeds, and yet
the mean inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from trainings.results import Result

REFERENCE = "none"
"""Full precision; the other codecs and central training are held against it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One codec in one group.

    Attributes:
        losses: final held-out loss by seed.
        differences: of those from full precision with the same seed.
        verdict: ``inside`` the spread of full precision, or ``worse``, or ``better``; nothing for full
            precision itself and where it has one seed only.
        bytes: of one training, both ways, the mean over the seeds.
        part: of the bytes of full precision.
        identical: whether the last models equal those of full precision, bit for bit, with every seed.
    """

    label: str
    losses: tuple[float, ...]
    differences: tuple[float, ...]
    verdict: str
    bytes: float
    part: float
    identical: bool

    @property
    def mean(self) -> float:
        """Of the losses."""
        return fmean(self.losses)

    @property
    def deviation(self) -> float:
        """Standard deviation of the losses over the seeds; 0 for a single one."""
        return stdev(self.losses) if len(self.losses) > 1 else 0.0

    @property
    def difference(self) -> float:
        """Mean of the paired differences."""
        return fmean(self.differences)


def compare(results: Iterable[Result], group: str) -> list[Row]:
    """A row for each codec of a group, in the order of the results; none without full precision."""
    mine = [result for result in results if result.group == group and not result.repeat]
    reference = {result.seed: result for result in mine if result.label == REFERENCE}
    labels = list(dict.fromkeys(result.label for result in mine if result.seed in reference))
    return [
        _row([result for result in mine if result.label == label and result.seed in reference], reference)
        for label in labels
    ]


def repeated(results: Iterable[Result], group: str) -> list[tuple[Result, Result]]:
    """Trainings that were done twice."""
    mine = [result for result in results if result.group == group]
    firsts = {(result.label, result.seed): result for result in mine if not result.repeat}
    pairs = ((firsts.get((again.label, again.seed)), again) for again in mine if again.repeat)
    return [(first, again) for first, again in pairs if first is not None]


def _row(mine: Sequence[Result], reference: dict[int, Result]) -> Row:
    ordered = sorted(mine, key=lambda result: result.seed)
    losses = tuple(result.final for result in ordered)
    label = ordered[0].label
    full = [result.final for result in reference.values()]
    traffic = fmean(result.bytes for result in ordered)
    return Row(
        label=label,
        losses=losses,
        differences=tuple(result.final - reference[result.seed].final for result in ordered),
        verdict="" if label == REFERENCE or len(full) < 2 else _verdict(fmean(losses), full),
        bytes=traffic,
        part=traffic / fmean(reference[result.seed].bytes for result in ordered),
        identical=all(result.digest[:16] == reference[result.seed].digest[:16] for result in ordered),
    )


def _verdict(mean: float, full: Sequence[float]) -> str:
    if mean > max(full):
        return "worse"
    return "better" if mean < min(full) else "inside"
