"""A Kubernetes CRI server: pods and containers through OCI runtimes, with nothing leaked."""

__version__ = "0.1.0"
