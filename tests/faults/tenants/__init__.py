"""What one pod's specification, image, container or stream can try against the node: attacks, one function each."""
