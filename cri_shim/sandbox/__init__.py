"""The use cases: pods and containers, the only place where the mechanisms meet."""
