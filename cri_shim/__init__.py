"""A Kubernetes CRI server that runs pods through OCI runtimes."""

__version__ = "0.1.0"
