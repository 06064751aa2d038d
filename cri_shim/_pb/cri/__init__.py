"""Kubernetes' Container Runtime Interface: v1, and v1alpha2 which v1 contains."""
