"""A pod's networks: namespace, CNI attachments, host ports, and pending deletes."""
