"""Administration: what whoever runs a broker asks it. A part of `Client`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tensorbus.bus.access.token import TokenInfo, TokenPlan, check_token_id
from tensorbus.bus.consumers import ConsumerInfo
from tensorbus.bus.damage import DamagePage, ScrubReport
from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessageInfo, MessagePage
from tensorbus.bus.policies import PolicyConfig, PolicyInfo, check_policy_name
from tensorbus.bus.topics import check_filter, check_message_id

from .connection import Connection, segment
from .statuses import status, statuses

PAGE = 100
"""Messages asked for at a time."""


class Administration:
    """Dead letters, consumers, policies, tokens, damage, and what the broker is doing."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- dead letters ------------------------------------------------------------------------------

    async def dead_letters(
        self,
        filter: str = ">",  # noqa: A002 - as in subscribe
        *,
        after: int = 0,
    ) -> AsyncGenerator[MessageInfo]:
        """Messages that consumers could not deal with, oldest first; ``info.dead`` says who, and why.

        Args:
            filter: of dead-letter topics, ``dead.`` and the consumer's name unless it has another.
            after: only those behind this position in the broker's log; 0 for all.
        """
        check_filter(filter)
        position = after
        while True:
            params: dict[str, str | int] = {"topic": filter, "limit": PAGE}
            if position:
                params["after"] = position
            answer = await self._connection.call("GET", "/v1/dead-letters", params=params)
            page = MessagePage.from_json(answer)
            for info in page.messages:
                yield info
            if page.next is None:
                return
            position = page.next

    async def replay(self, message_id: str, *, everyone: bool = False) -> MessageInfo:
        """Make a dead letter a message of its original topic again; the letter is gone then.

        The message is a new one, with the old one's content, headers and key. It goes to the consumer that
        could not deal with it, or to all. Asked once: if the answer is lost, see whether the letter is there.

        Raises:
            NotFound: there is no such message; or its consumer is gone, or takes other topics now.
            Conflict: it is no dead letter.
        """
        path = f"/v1/messages/{segment(check_message_id(message_id))}/replay"
        document: dict[str, object] = {"everyone": everyone}
        return MessageInfo.from_json(
            await self._connection.call("POST", path, document=document, retry=False)
        )

    async def purge_dead_letters(
        self,
        filter: str,  # noqa: A002 - as in subscribe
    ) -> int:
        """Remove all dead letters on matching topics; how many. Other messages there stay."""
        params = {"topic": check_filter(filter)}
        answer = await self._connection.call("DELETE", "/v1/dead-letters", params=params)
        return Fields(answer, "dead letters").integer("removed")

    async def status(self, **view: str | int) -> dict[str, object]:
        """What the broker is doing: jobs, transfers, topics, consumers, codecs, disk; see `GET /v1/status`.

        Args:
            view: what of it, and in which order, by the names of the request's parameters: ``search="sft"``,
                ``topics=100``, ``consumers_by="lag"``.
        """
        return await status(self._connection, view)

    def statuses(self, **view: str | int) -> AsyncGenerator[dict[str, object]]:
        """The status of now, and then whenever it has changed, twice a second at the most.

        ``view`` is as in `status`. It ends when the broker stops, and after an hour. Unlike other
        calls it is not tried again: it raises BrokerUnavailable or TransferStalled when the connection
        breaks, so that a display can say so.
        """
        return statuses(self._connection, view)

    async def damaged(self, after: int = 0, limit: int = PAGE) -> DamagePage:
        """Messages that the broker does not deliver because their frames are damaged, by seq."""
        params = {"after": after, "limit": limit}
        return DamagePage.from_json(await self._connection.call("GET", "/v1/damaged", params=params))

    async def scrub(self, rate: int | None = None) -> ScrubReport:
        """Have the broker verify everything that it stores, at ``rate`` bytes per second at the most.

        It goes on by itself; `scrub_report` tells how far it is. Raises Conflict while one is under way.
        """
        answer = await self._connection.call("POST", "/v1/scrub", document={"rate": rate}, retry=False)
        return ScrubReport.from_json(answer)

    async def scrub_report(self) -> ScrubReport:
        """How far the broker's scrub is, or what the last one has found."""
        return ScrubReport.from_json(await self._connection.call("GET", "/v1/scrub"))

    async def policies(self) -> list[PolicyInfo]:
        """The policies of retention, and what the topics under them hold."""
        answer = await self._connection.call("GET", "/v1/policies")
        return [PolicyInfo.from_json(entry) for entry in Fields(answer, "policies").array("policies")]

    async def set_policy(self, name: str, policy: PolicyConfig) -> PolicyInfo:
        """Create or change a policy: how long the messages of some topics are kept. It holds at once.

        Raises:
            InvalidName, InvalidRequest: the policy makes no sense.
            Conflict: another policy has topics in common with it; or it is a work queue, and there are
                consumers that would share messages or leave some out.
        """
        path = f"/v1/policies/{segment(check_policy_name(name))}"
        return PolicyInfo.from_json(await self._connection.call("PUT", path, document=policy.to_json()))

    async def delete_policy(self, name: str) -> None:
        """Forget a policy; what its topics hold stays.

        Raises:
            NotFound: there is none of that name.
        """
        await self._connection.call("DELETE", f"/v1/policies/{segment(name)}")

    async def consumers(self) -> list[ConsumerInfo]:
        """The consumers and where they stand."""
        answer = await self._connection.call("GET", "/v1/consumers")
        return [ConsumerInfo.from_json(entry) for entry in Fields(answer, "consumers").array("consumers")]

    async def consumer(self, name: str) -> ConsumerInfo:
        """One consumer and where it stands.

        Raises:
            NotFound: there is none of that name.
        """
        return ConsumerInfo.from_json(await self._connection.call("GET", f"/v1/consumers/{segment(name)}"))

    async def delete_consumer(self, name: str) -> None:
        """Forget a durable consumer.

        Raises:
            NotFound: there is none of that name.
        """
        await self._connection.call("DELETE", f"/v1/consumers/{segment(name)}")

    # --- tokens ------------------------------------------------------------------------------------

    async def create_token(self, plan: TokenPlan) -> tuple[TokenInfo, str]:
        """A new token for somebody, and its text, ``tb_…``, which nobody can be told again.

        Needs the right admin on ``>``. Asked once, since each time makes another one.
        """
        answer = await self._connection.call("POST", "/v1/tokens", document=plan.to_json(), retry=False)
        return TokenInfo.from_json(answer), Fields(answer, "token").text("token")

    async def tokens(self) -> list[TokenInfo]:
        """All tokens of the broker. Needs the right admin on ``>``."""
        answer = await self._connection.call("GET", "/v1/tokens")
        return [TokenInfo.from_json(entry) for entry in Fields(answer, "tokens").array("tokens")]

    async def revoke_token(self, token_id: str) -> None:
        """Have a token refused from now on. Needs the right admin on ``>``.

        Raises:
            NotFound: there is none of this id.
        """
        await self._connection.call("DELETE", f"/v1/tokens/{segment(check_token_id(token_id))}")
