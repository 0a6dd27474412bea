"""The async client: the library's face."""

from .client import Client
from .delivery import Delivery
from .item_sink import DecodedItem
from .message import Message
from .progress import Progress
from .publishing import Receipt
from .settings import ClientSettings
from .subscription import Subscription
from .tls import TlsSettings

__all__ = [
    "Client",
    "ClientSettings",
    "DecodedItem",
    "Delivery",
    "Message",
    "Progress",
    "Receipt",
    "Subscription",
    "TlsSettings",
]
