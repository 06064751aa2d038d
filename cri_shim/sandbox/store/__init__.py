"""Sandboxes and containers: their model, their records on disk, and questions that a record answers."""
