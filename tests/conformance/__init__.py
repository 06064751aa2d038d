"""Clients that others wrote, against the real daemon: crictl by hand-written scripts, critest whole."""
