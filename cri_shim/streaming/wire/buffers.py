"""The type of bytes in transit. Payload travels as views of the chunk it arrived in, never copied to frame it."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | memoryview
"""Bytes, or a view of bytes with items of one byte."""
