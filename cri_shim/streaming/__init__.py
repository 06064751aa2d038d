"""Exec, attach and port-forward: tickets, sessions, and the server that clients connect to."""
