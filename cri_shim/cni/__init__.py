"""CNI: network configuration, the plugins' chains, and their results."""
