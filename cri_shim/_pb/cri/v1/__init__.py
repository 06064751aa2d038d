"""runtime.v1: the messages that the server works with."""
