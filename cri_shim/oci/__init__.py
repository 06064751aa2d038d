"""OCI runtimes, their monitor conmon, and the runtime-spec of a container."""
