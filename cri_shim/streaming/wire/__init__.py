"""The streaming protocols without a socket: bytes in, events out; commands in, buffers out.

Promise: whatever bytes a peer sends, the outcome is events, at worst one that says why the session is over. Nothing
here waits, reads a clock or knows asyncio.
"""
