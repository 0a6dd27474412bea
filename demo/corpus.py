"""The text: short dialogues of ``chatterbot-corpus``, a file a topic, shared out over the sites by topic.

Each site so gets a different kind of data, as in a real federation: one trivia, the other literature and
psychology. Nothing here is random; the same number of sites always gives the same shares.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from tensorbus.errors import NotFound

HELD_OUT_EVERY = 8
"""One dialogue in so many of each topic is never trained on."""
EVALUATED = 48
"""Of those, so many are evaluated each round, by all sites together."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One exchange: what is asked, and the answer that the model shall learn to give."""

    topic: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Share:
    """What one site trains on, and its part of the held-out dialogues that all sites evaluate together."""

    topics: tuple[str, ...]
    train: tuple[Dialogue, ...]
    held_out: tuple[Dialogue, ...]


def corpus_folder() -> Path:
    """Where the installed corpus keeps its English topics; the package itself is not imported.

    Raises:
        NotFound: ``chatterbot-corpus`` is not installed.
    """
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise NotFound("the demo's text is not installed; run: pip install chatterbot-corpus")
    return Path(spec.origin).parent / "data" / "english"


def read_topics(folder: Path) -> dict[str, tuple[Dialogue, ...]]:
    """All topics by name; repeated dialogues are kept once, and of longer talks the first exchange."""
    return {path.stem: tuple(_dialogues(path)) for path in sorted(folder.glob("*.yml"))}


def _dialogues(path: Path) -> Iterable[Dialogue]:
    document = cast(dict[str, object], yaml.safe_load(path.read_text(encoding="utf-8")))
    seen: set[tuple[str, str]] = set()
    for talk in cast(list[object], document["conversations"]):
        if not isinstance(talk, list) or len(cast(list[object], talk)) < 2:
            continue  # one line of the corpus is a bare sentence by a slip of its indentation
        question, answer = (" ".join(str(line).split()) for line in cast(list[object], talk)[:2])
        if (question, answer) not in seen:
            seen.add((question, answer))
            yield Dialogue(path.stem, question, answer)


def share_out(topics: dict[str, tuple[Dialogue, ...]], sites: int) -> list[Share]:
    """Give each topic to one site: the largest first, always to the site that has least.

    Args:
        topics: from ``read_topics``.
        sites: number of shares; each gets at least one topic.

    Raises:
        NotFound: there are more sites than topics.
    """
    if not 1 <= sites <= len(topics):
        raise NotFound(f"the corpus has {len(topics)} topics; it cannot be shared out over {sites} sites")
    given: list[list[str]] = [[] for _ in range(sites)]
    sizes = [0] * sites
    for topic in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        least = sizes.index(min(sizes))
        given[least].append(topic)
        sizes[least] += len(topics[topic])
    held_out = [line for lines in topics.values() for line in lines[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]]
    evaluated = [held_out[place * len(held_out) // EVALUATED] for place in range(EVALUATED)]
    return [
        Share(
            topics=tuple(names),
            train=tuple(
                line
                for name in names
                for place, line in enumerate(topics[name], start=1)
                if place % HELD_OUT_EVERY != 0
            ),
            held_out=tuple(evaluated[site::sites]),
        )
        for site, names in enumerate(given)
    ]
