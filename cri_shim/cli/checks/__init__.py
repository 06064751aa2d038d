"""Preflight: what the daemon needs of a node, a function per row, each with its remedy.

What can be read from files is read below `Node.root`, so that it can be tried on recorded trees; what only the kernel
can answer (a mount, a syscall, a bind) is really tried, and undone.
"""
