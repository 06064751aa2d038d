"""cri_shim.shim.v2."""
