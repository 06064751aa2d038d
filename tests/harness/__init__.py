"""What integration tests stand on: an isolated node, a real daemon, a client for it, and the leak guard."""
