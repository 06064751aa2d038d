"""Prints docs/configuration.md: `python -m cri_shim.config > docs/configuration.md`."""

import sys

from cri_shim.config.render import reference_markdown

if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
