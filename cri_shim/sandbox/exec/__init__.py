"""Exec, attach and port forwarding: commands in containers, connections to monitors, and sockets in pods."""
