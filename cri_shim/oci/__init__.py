"""The OCI runtime-spec and the runtimes that carry it out."""
