#!/usr/bin/python3 -SE
"""A runtime with `--version` and `features` only. Its name selects the features.

Called as `rro…` it knows recursive read-only mounts, as `idmap…` ID-mapped ones as runc does, as `old…` it has no
`features`, else it has none worth a name.
"""

from __future__ import annotations

import os
import sys

IDMAP = (
    '{"linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}, '
    '"annotations": {"org.opencontainers.runc.version": "1.2.3"}}'
)


def main() -> int:
    name = os.path.basename(sys.argv[0])
    if "--version" in sys.argv:
        print(f"{name} version 1.2.3\nspec: 1.1.0")
        return 0
    if "features" in sys.argv and not name.startswith("old"):
        rro = '{"mountOptions": ["rro", "ro"]}'
        print(rro if name.startswith("rro") else IDMAP if name.startswith("idmap") else "{}")
        return 0
    sys.stderr.write("no such command\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
