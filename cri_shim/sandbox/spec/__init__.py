"""What the runtime-spec of a pod or container is made of, and what the node adds to it."""
