"""The daemon: builds every object, starts and stops them in order, owns the background tasks."""
