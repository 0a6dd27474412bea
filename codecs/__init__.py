"""Containers to items and back (serializers), items to fewer bits and back (quantizers)."""
