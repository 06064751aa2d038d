"""The metrics of CRI: their table, the values they are computed from, and the computation."""
