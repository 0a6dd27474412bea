"""Who may do what: tokens, their rights, and the file that keeps them. Knows no HTTP."""

from .rights import NO_RIGHTS, OWNER_RIGHTS, Right, Rights
from .token import NO_QUOTAS, Quotas, Token, TokenInfo, TokenPlan, read_credential
from .token_file import TokenFile

__all__ = [
    "NO_QUOTAS",
    "NO_RIGHTS",
    "OWNER_RIGHTS",
    "Quotas",
    "Right",
    "Rights",
    "Token",
    "TokenFile",
    "TokenInfo",
    "TokenPlan",
    "read_credential",
]
