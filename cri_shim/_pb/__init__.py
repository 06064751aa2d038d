"""Stubs generated from api/; see api/generate.sh. Only the packages' `__init__.py` are written by hand."""
