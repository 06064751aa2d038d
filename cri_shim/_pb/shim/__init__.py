"""The task API of containerd's shims."""
