"""The one tree of errors. Each class knows its HTTP status and its problem type (RFC 9457).

The broker turns an error into ``application/problem+json``; the client turns the problem back into the
same class. A message says what was wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

PROBLEM_PREFIX = "urn:tensorbus:problem:"


class TensorbusError(Exception):
    """Base of every error that Tensorbus raises on purpose."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"

    @classmethod
    def problem_type(cls) -> str:
        """The URN that names this error on the wire."""
        return PROBLEM_PREFIX + cls.slug


# --- what the caller gave is wrong -------------------------------------------------------------------


class InvalidName(TensorbusError, ValueError):
    """A topic, filter, consumer, item or site name is malformed or too long."""

    status = 400
    slug = "invalid-name"


class InvalidRequest(TensorbusError, ValueError):
    """A request, header, parameter or JSON body is malformed."""

    status = 400
    slug = "invalid-request"


class InvalidSpecification(TensorbusError, ValueError):
    """A pipeline or job specification is malformed."""

    status = 400
    slug = "invalid-specification"


class MissingPackage(TensorbusError, ImportError):
    """An optional package is needed for this, and not installed; the message says how to get it."""

    status = 501
    slug = "missing-package"


class LimitExceeded(TensorbusError, ValueError):
    """A size or count that came from outside is over its limit."""

    status = 413
    slug = "limit-exceeded"


# --- codecs ------------------------------------------------------------------------------------------


class CodecError(TensorbusError, ValueError):
    """A container, an item or an encoded payload cannot be handled."""

    status = 422
    slug = "codec"


class UnknownCodec(CodecError):
    """No serializer or quantizer of this name is installed."""

    slug = "unknown-codec"


class UnsupportedDtype(CodecError, TypeError):
    """The dtype is unknown, or the container kind cannot hold it."""

    slug = "unsupported-dtype"


class UnsupportedContainer(CodecError, TypeError):
    """The object is no container that any serializer recognises."""

    slug = "unsupported-container"


class NonFiniteValues(CodecError):
    """A tensor to be quantised, or an update to be aggregated, holds NaN or Inf."""

    slug = "non-finite-values"


class PayloadMismatch(CodecError):
    """An encoded payload disagrees with the element count, dtype or codec that its frame declares."""

    slug = "payload-mismatch"


class KernelsUnavailable(CodecError):
    """TENSORBUS_KERNELS or TENSORBUS_ISA asks for compiled kernels that this installation has not."""

    slug = "kernels-unavailable"


class ManifestMismatch(CodecError):
    """Two descriptions of the same container disagree: names, shapes, dtypes."""

    slug = "manifest-mismatch"


class MissingBase(CodecError):
    """An item is encoded against a base, a container that both ends hold, and this end does not hold it."""

    status = 409
    slug = "missing-base"


# --- frames ------------------------------------------------------------------------------------------


class FrameError(TensorbusError, ValueError):
    """The bytes are not a valid sequence of frames."""

    status = 422
    slug = "frame"


class TruncatedFrames(FrameError):
    """The bytes end in the midst of a frame, or before the close frame."""

    slug = "truncated-frames"


class ChecksumMismatch(FrameError):
    """A frame's CRC-32C, or the digest of the whole, does not match: the bytes were damaged."""

    slug = "checksum-mismatch"


class UnsupportedVersion(FrameError):
    """The frame's format version or kind is not known to this release."""

    slug = "unsupported-version"


class FrameSequenceError(FrameError):
    """Frames are reordered, repeated or missing, or disagree with the manifest."""

    slug = "frame-sequence"


# --- the broker --------------------------------------------------------------------------------------


class NotFound(TensorbusError, LookupError):
    """No such message, item, topic, consumer or delivery."""

    status = 404
    slug = "not-found"


class Conflict(TensorbusError):
    """The request contradicts what is already there."""

    status = 409
    slug = "conflict"


class AlreadySettled(Conflict):
    """The delivery was acknowledged, refused or handed to another worker before."""

    slug = "already-settled"


class DeliveryExpired(AlreadySettled):
    """The delivery is not this worker's any more, and its message not settled: it is handed over again."""

    slug = "delivery-expired"


class MessageAborted(TensorbusError):
    """The message was never completed: its publisher stopped, failed or was replaced."""

    status = 410
    slug = "message-aborted"


class MessageReplaced(MessageAborted):
    """Another upload of the same idempotency key took the place of this one."""

    slug = "message-replaced"


class TransferStalled(TensorbusError, TimeoutError):
    """The peer made no progress for the idle time-out."""

    status = 408
    slug = "transfer-stalled"


class StorageError(TensorbusError, OSError):
    """The store cannot read or write."""

    status = 500
    slug = "storage"


class ChunkMismatch(TensorbusError):
    """A chunk of a resumable upload does not match its Upload-Checksum; it was dropped, send it again."""

    status = 460  # of tus 1.0
    slug = "chunk-mismatch"


class QuotaExceeded(TensorbusError):
    """A policy of the topic, or the quota of the token, leaves no room; nothing stored is touched."""

    status = 507
    slug = "quota-exceeded"


class StorageFull(StorageError):
    """The disk or a quota is full; nothing that was acknowledged is touched."""

    status = 507
    slug = "storage-full"


class StoreReadOnly(StorageError):
    """Writing failed so that what follows could not be trusted; what is stored is still delivered."""

    status = 503
    slug = "store-read-only"


class StoreInUse(StorageError):
    """Another broker holds the data directory."""

    slug = "store-in-use"


class StoreVersion(StorageError):
    """The data directory was written in a format of another release."""

    slug = "store-version"


class StoreDamaged(StorageError):
    """Stored bytes do not match their checksum; they are not delivered."""

    slug = "store-damaged"


class PortInUse(TensorbusError, OSError):
    """The address to listen on is taken or not allowed."""

    slug = "port-in-use"


class InvalidCertificate(TensorbusError, OSError):
    """A file of certificates or keys cannot be used."""

    slug = "invalid-certificate"


# --- the client --------------------------------------------------------------------------------------


class BrokerUnavailable(TensorbusError, ConnectionError):
    """The broker cannot be reached, or went away and did not come back in time."""

    status = 503
    slug = "broker-unavailable"


class StoreUnavailable(BrokerUnavailable, StorageError):
    """The servers that keep the messages do not answer; nothing is lost, the same request succeeds later."""

    slug = "store-unavailable"


class UntrustedPeer(TensorbusError, ConnectionError):
    """The client does not trust the broker's certificate, or the broker not the client's."""

    status = 502
    slug = "untrusted-peer"


class ClientClosed(TensorbusError, RuntimeError):
    """The client was closed before this call, or while it ran."""

    slug = "client-closed"


class TransferCancelled(TensorbusError):
    """The transfer was given up while this part of it was still at work."""

    slug = "transfer-cancelled"


class BrokerBusy(BrokerUnavailable):
    """The broker does as much as it may at a time; the same request succeeds later."""

    slug = "broker-busy"


class Unauthorized(TensorbusError, PermissionError):
    """The token is missing, unknown, expired or revoked."""

    status = 401
    slug = "unauthorized"


class Forbidden(Unauthorized):
    """The token lacks the right for this topic or operation."""

    status = 403
    slug = "forbidden"


class TooManyRequests(BrokerBusy):
    """The token has as many connections, open uploads or consumers as it may have; it may succeed later."""

    status = 429
    slug = "too-many-requests"


# --- federations -------------------------------------------------------------------------------------


class JobError(TensorbusError):
    """A federated job cannot go on."""

    status = 409
    slug = "job"


class JobCancelled(JobError):
    """Somebody has cancelled the job; its last model stays at the broker."""

    slug = "job-cancelled"


class RoundClosed(JobError):
    """The update belongs to a round that is over."""

    slug = "round-closed"


def by_slug() -> dict[str, type[TensorbusError]]:
    """Every error class under its slug, to turn a problem document back into an exception."""
    found: dict[str, type[TensorbusError]] = {}
    todo: list[type[TensorbusError]] = [TensorbusError]
    while todo:
        cls = todo.pop()
        found[cls.slug] = cls
        todo.extend(cls.__subclasses__())
    return found
