"""The unpacker: a template process, its children, and the daemon's end of it."""
