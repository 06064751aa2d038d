"""The unpacker: the daemon's client, a template process, and the confined children that do the work."""
