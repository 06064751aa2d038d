"""Registries: servers, authorization, downloads."""
