"""containerd's shim v2 without containerd: shims started and driven, and the process that holds containers' streams."""
