"""Tensorbus: an asyncio message bus for model updates."""

__version__ = "0.1.0"
