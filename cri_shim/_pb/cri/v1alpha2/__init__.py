"""runtime.v1alpha2: for its service names, for clients in tests and for reflection."""
