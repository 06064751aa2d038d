"""Control groups of v1, hybrid and v2 nodes behind one interface, `tree.Cgroups`."""
