"""What the command line needs and CRI lacks."""
