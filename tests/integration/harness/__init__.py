"""The harness against a real daemon."""
