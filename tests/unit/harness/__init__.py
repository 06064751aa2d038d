"""Unit tests of the integration tests' harness: what of it can be wrong without a node."""
