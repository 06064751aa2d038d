"""cri_shim.admin.v1."""
