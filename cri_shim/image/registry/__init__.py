"""Registries: which servers stand for one, how they authorize, what is downloaded from them."""
