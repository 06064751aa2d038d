"""cri_shim.ttrpc.v1."""
