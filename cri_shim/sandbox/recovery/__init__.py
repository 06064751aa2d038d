"""Recovery of the objects that a former daemon left, and the wipe of a root."""
