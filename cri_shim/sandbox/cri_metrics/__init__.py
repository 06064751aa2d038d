"""The metrics of CRI: which there are, and what they are computed from."""
