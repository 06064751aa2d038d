"""The base of integration tests: an isolated node, a real daemon, a CRI client, and the leak guard."""
