"""The streaming process: what runs beside the daemon and talks to clients of Exec, Attach and PortForward."""
