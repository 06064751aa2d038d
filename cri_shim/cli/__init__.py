"""One module per command of cri-shim."""
