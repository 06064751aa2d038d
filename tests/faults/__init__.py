"""What breaks when the daemon, its helpers or the node break: killed at every step, in a campaign, on a full disk."""
