"""What bytes travel as: payloads are handed on as views into the chunk they came in, never copied to be framed."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | memoryview
"""Bytes, or a view of bytes with items of one byte."""
