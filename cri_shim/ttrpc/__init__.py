"""ttrpc, the calls that containerd's shims and NRI plugins speak: its frames, a client and a server."""
