"""Pods and containers: the only layer that combines the mechanisms."""
