"""Build runtime-specs from CRI configurations. Pure: no look-ups, no effects."""
