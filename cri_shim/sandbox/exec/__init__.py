"""Commands in containers, attach sessions, and sockets into pods."""
