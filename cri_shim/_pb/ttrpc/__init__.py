"""ttrpc: what its frames carry."""
