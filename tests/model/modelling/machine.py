"""What all steps have in common: each is done to the broker and to the reference, which must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from tensorbus.errors import TensorbusError

from .driven import Driven, body_of
from .reference import Message, Reference

WINDOW = 100.0


class Machine(RuleBasedStateMachine):
    """A broker and the reference beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Driven(WINDOW)
        self.wanted = Reference(WINDOW)
        self.tokens: list[tuple[str, str, int]] = []
        """Every token that was handed out: the consumer, the token, and the attempt that it is of."""
        self.last_seq = 0
        self.contents = 0

    def teardown(self) -> None:
        """Everything that is stored can be read, and is what was published."""
        try:
            for message in self.wanted.messages.values():
                assert self.real.content(message.id) == body_of(message.content)
        finally:
            self.real.close()

    def content(self, size: int) -> bytes:
        """Bytes that no other message has."""
        self.contents += 1
        return (b"%d " % self.contents * size)[:size] if size else b""

    def seq_of(self, name: str) -> int:
        """For a choice that does not depend on random ids."""
        return self.wanted.messages[name].seq

    # --- both -----------------------------------------------------------------------------------------

    def both(self, real: Callable[[], Any], wanted: Callable[[], Any]) -> tuple[Any, Any]:
        """Do it to both; they give results, or the same error (then None and None)."""
        result, outcome = self.compared(real, wanted)
        self.meet()
        return result, outcome

    def compared(self, real: Callable[[], Any], wanted: Callable[[], Any]) -> tuple[Any, Any]:
        """As ``both``, but nothing is due before the reference knows of it."""
        problem: type[TensorbusError] | None = None
        outcome = result = None
        try:
            outcome = wanted()
        except TensorbusError as error:
            problem = type(error)
        said: TensorbusError | None = None
        try:
            result = real()
        except TensorbusError as error:
            said = error
        assert problem is (said and type(said)), (
            f"the broker gave {result}, {said!r}, the reference {problem}"
        )
        return result, outcome

    def meet(self) -> None:
        """Let what is due be done by both, and take over the ids of the dead letters that were made."""
        self.take_letters()
        if self.wanted.policies:
            # A policy is enforced in the background, soon; a sweep is when that is done.
            self.swept()

    def swept(self) -> None:
        """Let both sweep."""
        self.wanted.sweep()
        self.real.run(self.real.broker.sweep())
        self.take_letters()
        self.tokens = [token for token in self.tokens if token[0] in self.wanted.consumers]

    def restarted(self) -> None:
        """The broker has been started again."""
        self.wanted.restart()
        self.take_letters()

    def take_letters(self) -> None:
        """The broker chooses the order of letters made at once; it must make just those that must be."""
        missing, self.wanted.to_bury = self.wanted.to_bury, []
        if not missing:
            return
        known = set(self.wanted.messages)
        for info in self.real.all_messages():
            if info.id in known or info.dead is None:
                continue
            name, died, topic = next(
                each for each in missing if (each[0], each[1].id) == (info.dead.consumer, info.dead.message)
            )
            missing.remove((name, died, topic))
            assert info.topic == topic and info.key is None
            assert info.seq is not None and info.sealed is not None
            deaths = (*died.deaths, name)
            self.wanted.published(
                Message(info.id, info.seq, info.topic, None, died.content, self.wanted.now, deaths, died)
            )
            self.last_seq = max(self.last_seq, info.seq)
        assert not missing, f"there are no dead letters for {missing}"
