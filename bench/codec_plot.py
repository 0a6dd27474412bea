"""The picture of error against bits."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec_error import Quality


@dataclass(frozen=True)
class Point:
    """One pipeline: on Gaussian weights, and on the real update."""

    pipeline: str
    gaussian: Quality
    update: Quality


PLACES = {
    "nf4": (6, -12),
    "nf4-dq": (-32, 7),
    "lloyd:2": (-4, -15),
    "lloyd:3": (6, -9),
}
"""Where a point's name stands, in points from it; others are to the right and above."""


def draw(points: Sequence[Point], path: Path) -> None:
    """Two panels; the even steps are a line, the others are points with their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.8), sharey=True)
    for panel, title in zip(panels, ("Gaussian weights", "a real update of SmolLM2"), strict=True):
        pick = [(point.pipeline, point.gaussian if title[0] == "G" else point.update) for point in points]
        lossy = [(name, quality) for name, quality in pick if quality.error > 0 and quality.bits < 9]
        even = sorted((quality.bits, quality.error) for name, quality in lossy if name.startswith("uniform"))
        panel.plot([bits for bits, _ in even], [error for _, error in even], "o-", label="uniform, any step")
        for name, quality in lossy:
            if not name.startswith("uniform"):
                panel.plot(quality.bits, quality.error, "s", color="tab:red")
                panel.annotate(
                    name.replace("|", "→"),
                    (quality.bits, quality.error),
                    xytext=PLACES.get(name, (6, 4)),
                    textcoords="offset points",
                    fontsize=8,
                )
        rates = [bits / 10 for bits in range(15, 90)]
        if title[0] == "G":
            panel.plot(
                rates, [2 ** (-2 * bits) for bits in rates], ":", color="grey", label="no code can do better"
            )
        panel.set(
            title=title,
            xlabel="bits a parameter",
            yscale="log",
            xscale="log",
            xlim=(1.4, 9.5),
            ylim=(1e-5, 0.4),
        )
        panel.set_xticks([2, 3, 4, 5, 6, 8], ["2", "3", "4", "5", "6", "8"])
        panel.minorticks_off()
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("relative mean square error")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
