"""Registries: their servers, authorization and downloads."""
