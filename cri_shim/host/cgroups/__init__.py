"""Control groups of v1, hybrid and v2 nodes behind one set of paths: `tree.Cgroups` is the door."""
