"""Steps of resumable uploads, cut anywhere, with crashes in their midst, and of those who follow them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tensorbus.bus.broker.uploads import Upload
from tensorbus.bus.messages import Receipt
from tensorbus.errors import FrameError, MessageAborted, TensorbusError
from tensorbus.streaming.frames import PRELUDE

from .driven import body_of
from .machine import Machine
from .reference import Message
from .uploads import Open

TOPICS = st.sampled_from(["a.x", "a.y", "b.x"])
KEYS = st.sampled_from([None, "k1", "k2", "k3"])
SIZES = st.sampled_from([0, 100, 3000, 9000])
TICK = 2.0**-10
"""Seconds; no sum of times is rounded."""


class UploadRules(Machine):
    """A part of the broker's life."""

    def __init__(self) -> None:
        super().__init__()
        self.contents_of: dict[str, bytes] = {}
        """Of every upload that there ever was."""

    @rule(topic=TOPICS, key=KEYS, size=SIZES, source=st.sampled_from([None, "s"]), crash=st.booleans())
    def create_upload(self, topic: str, key: str | None, size: int, source: str | None, crash: bool) -> None:
        """Made, found, a duplicate, or refused; and perhaps the broker crashes as soon as it is there."""
        content = self.content(size)
        body = body_of(content)
        # No two at the same moment: their order is that of time.
        self.real.clock.now += TICK
        self.wanted.now += TICK
        made, first = self.compared(
            lambda: self.real.create(topic, key, len(body), source),
            lambda: self.wanted.check_create(topic, key, len(body), source),
        )
        if made is None:
            self.meet()
            return
        if isinstance(first, Open):
            assert isinstance(made, Upload) and made.id == first.id
        elif first is not None:
            assert isinstance(made, Receipt)
            assert (made.duplicate, made.id, made.seq) == (True, first.id, first.seq)
        else:
            assert isinstance(made, Upload) and made.id not in self.contents_of
            self.contents_of[made.id] = content
            self.wanted.created(made.id, topic, key, body, source)
        if crash:
            self.real.crash()
            self.restarted()
        self.meet()

    def chosen(self, data: st.DataObject) -> Open:
        """One of them."""
        places = range(len(self.wanted.uploads.open))
        return list(self.wanted.uploads.open.values())[data.draw(st.sampled_from(places))]

    def touch(self, upload: Open) -> None:
        """It is as far as it should be; to find out makes it known to those who would follow it."""
        assert self.real.offset(upload.id) == upload.sent
        upload.known |= upload.visible > 0

    @rule(data=st.data(), rest=st.booleans(), crash=st.sampled_from(["", "", "", "amid", "after"]))
    @precondition(lambda self: bool(self.wanted.uploads.open))
    def append(self, data: st.DataObject, rest: bool, crash: str) -> None:
        """Some more bytes, cut anywhere, or all that are missing."""
        upload = self.chosen(data)
        begin, size = upload.sent, len(upload.body)
        self.touch(upload)
        end = size if rest else data.draw(st.integers(min(begin + 1, size), size))
        part = upload.body[begin:end]
        if crash == "amid":
            assert self.real.append(upload.id, part, amid=True) is None
            upload.sent = end
            self.wanted.uploads.had_a_turn(upload, self.wanted.now)
            upload.expires = upload.noted
            self.restarted_with(upload, begin)
        else:
            self.taken(upload, part, end)
            if crash:
                self.real.crash()
                self.restarted()
        self.meet()

    def restarted_with(self, upload: Open, before: int) -> None:
        """What was brought in the turn that a crash has cut may be lost, whole frames of it."""
        sent = upload.sent
        self.restarted()
        if upload.id in self.wanted.uploads.open:
            offset = self.real.offset(upload.id)
            assert offset is not None
            assert upload.boundary(before) <= offset <= upload.boundary(sent) and offset in (0, *upload.ends)
            upload.sent = offset
            upload.known |= upload.visible > 0

    def taken(self, upload: Open, part: bytes, end: int) -> None:
        """Bytes are added up to ``end``; if these are all, it is a message now, or there is no room."""
        self.wanted.uploads.had_a_turn(upload, self.wanted.now)
        if end < len(upload.body):
            assert self.real.append(upload.id, part) is None
            upload.sent = end
        else:
            receipt, _ = self.compared(
                lambda: self.real.append(upload.id, part), lambda: self.wanted.check_seal(upload)
            )
            if receipt is not None:
                self.sealed(upload, receipt)
                return
            # It can come again, from the last frame on.
            upload.sent = upload.ends[-2]
        self.touch(upload)

    def sealed(self, upload: Open, receipt: Receipt) -> None:
        """It is a message now."""
        assert (receipt.id, receipt.key, receipt.duplicate) == (upload.id, upload.key, False)
        assert receipt.seq > self.last_seq
        self.last_seq = receipt.seq
        self.wanted.sealed(upload.id)
        content = self.contents_of[upload.id]
        self.wanted.published(
            Message(upload.id, receipt.seq, upload.topic, upload.key, content, self.wanted.now)
        )
        for follower in [each for each in self.real.followers if each.id == upload.id]:
            assert self.real.end_of(follower) is None
            assert bytes(follower.read) == upload.body

    @rule(data=st.data())
    @precondition(lambda self: bool(self.wanted.uploads.open))
    def append_damaged(self, data: st.DataObject) -> None:
        """A whole frame with a wrong byte: it is refused, and the upload goes on before it."""
        upload = self.chosen(data)
        begin = upload.sent
        self.touch(upload)
        left = [end for end in upload.ends if end > begin]
        end = data.draw(st.sampled_from(left)) if left else begin
        start = upload.boundary(end - 1)
        # Behind its prelude: with a wrong length it may only be found wrong when more has come.
        first = max(start + PRELUDE.size, begin)
        if first >= end:
            return
        at = data.draw(st.integers(first, end - 1)) - begin
        part = bytearray(upload.body[begin:end])
        part[at] ^= 16
        said: TensorbusError | None = None
        try:
            self.real.append(upload.id, bytes(part))
        except TensorbusError as problem:
            said = problem
        assert isinstance(said, FrameError), f"the broker said {said!r} to a damaged frame"
        self.wanted.uploads.had_a_turn(upload, self.wanted.now)
        offset = self.real.offset(upload.id)
        assert offset is not None and upload.boundary(begin) <= offset <= start
        upload.sent = offset
        upload.known |= upload.visible > 0
        self.meet()

    @rule(data=st.data())
    @precondition(lambda self: bool(self.wanted.uploads.open))
    def head(self, data: st.DataObject) -> None:
        """Somebody asks how far it is, and so takes the turn; what is complete is a message then."""
        upload = self.chosen(data)
        self.touch(upload)
        self.taken(upload, b"", upload.sent)
        self.meet()

    @rule(data=st.data(), delete=st.booleans())
    @precondition(lambda self: bool(self.wanted.uploads.open))
    def terminate(self, data: st.DataObject, delete: bool) -> None:
        """Its publisher gives it up, or an admin deletes it: nothing of it is left."""
        name = self.chosen(data).id
        if delete:
            self.both(lambda: self.real.run(self.real.broker.delete(name)), lambda: self.wanted.delete(name))
        else:
            self.both(lambda: self.real.give_up(name), lambda: self.wanted.give_up(name))

    @rule(data=st.data())
    @precondition(lambda self: bool(self.wanted.uploads.open) and len(self.real.followers) < 4)
    def follow(self, data: st.DataObject) -> None:
        """Somebody begins to read what is being published."""
        upload = self.chosen(data)
        self.touch(upload)
        self.real.follow(upload.id)

    @invariant()
    def same_uploads(self) -> None:
        """The same uploads in the same order, each as far as it is, and to be seen no further."""
        page = self.real.run(self.real.broker.messages(state="open"))
        assert [info.id for info in page.messages] == list(self.wanted.uploads.open)
        for info in page.messages:
            upload = self.wanted.uploads.open[info.id]
            assert info.bytes == (upload.visible if upload.known else 0), f"{info} is at {upload.sent}"

    @invariant()
    def followers_read_what_is_sent(self) -> None:
        """As far as they are it is what was published; of what was given up they are told."""
        for follower in list(self.real.followers):
            upload = self.wanted.uploads.open.get(follower.id)
            if upload is None:
                assert isinstance(self.real.end_of(follower), MessageAborted)
                assert body_of(self.contents_of[follower.id]).startswith(bytes(follower.read))
            else:
                assert not follower.task.done()
                assert upload.body[: len(follower.read)] == bytes(follower.read)
