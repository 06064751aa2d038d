"""The streaming protocols without sockets (sans-IO): bytes in, events out; commands in, bytes out.

Promise: whatever bytes a peer sends, the result is events; at worst one that says why the session is over. Nothing here
waits, reads a clock or uses asyncio.
"""
