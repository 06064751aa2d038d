"""The streaming process, which runs beside the daemon and serves the clients of Exec, Attach and PortForward."""
