"""The demo's text and how it is shared out."""

from __future__ import annotations

import importlib.util

import pytest

from tensorbus.demo.corpus import EVALUATED, Dialogue, corpus_folder, read_topics, share_out
from tensorbus.errors import NotFound

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus is not installed"
)


@pytest.fixture(scope="module")
def topics() -> dict[str, tuple[Dialogue, ...]]:
    """The installed corpus."""
    return read_topics(corpus_folder())


@pytest.mark.parametrize("sites", [1, 2, 4, 8])
def test_shares_are_disjoint_and_balanced(topics: dict[str, tuple[Dialogue, ...]], sites: int) -> None:
    """Every topic goes to one site, and no site gets less than a batch or two of dialogues."""
    shares = share_out(topics, sites)
    given = [topic for share in shares for topic in share.topics]
    assert sorted(given) == sorted(topics)
    assert all(len(share.train) >= 16 for share in shares)
    assert all({line.topic for line in share.train} <= set(share.topics) for share in shares)


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_held_out_text_is_the_same_for_any_number_of_sites(
    topics: dict[str, tuple[Dialogue, ...]], sites: int
) -> None:
    """The evaluation does not depend on the number of sites, and nobody trains on what it uses."""
    shares = share_out(topics, sites)
    held_out = {line for share in shares for line in share.held_out}
    assert len(held_out) == EVALUATED
    assert held_out == {line for share in share_out(topics, 1) for line in share.held_out}
    assert not held_out & {line for share in shares for line in share.train}


def test_the_same_question_is_asked_once(topics: dict[str, tuple[Dialogue, ...]]) -> None:
    """Repeated dialogues are kept once, so that none is trained on and held out at the same time."""
    for dialogues in topics.values():
        assert len(set(dialogues)) == len(dialogues)


def test_too_many_sites_are_refused(topics: dict[str, tuple[Dialogue, ...]]) -> None:
    """A site without a topic has nothing to train on."""
    with pytest.raises(NotFound, match="cannot be shared out"):
        share_out(topics, len(topics) + 1)
