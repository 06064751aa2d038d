"""The kernel and child processes; knows nothing of CRI."""
