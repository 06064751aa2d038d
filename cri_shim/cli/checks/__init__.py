"""Checks of the node: a function for each row of `cri-shim check`, with the remedy.

Files are read below `Node.root`, so that tests can use recorded trees. What only the kernel can answer (a mount, a
system call, a bind) is tried and undone.
"""
