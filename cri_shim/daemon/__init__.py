"""The daemon: builds all objects, and starts and stops them in order."""
