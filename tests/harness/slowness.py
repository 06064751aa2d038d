"""The factor by which this machine is slower than usual: CRI_SHIM_TEST_SLOWNESS, 1 if not set.

The harness's deadlines are multiplied by it; what a test expects of the daemon's own times stays. An emulated machine
needs about 10.
"""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("CRI_SHIM_TEST_SLOWNESS", "1"))
