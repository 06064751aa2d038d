"""Sandboxes and containers: their states, their records on disk, and checks on them."""
